#include "core/weights.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "core/json.h"
#include "core/safetensors.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::expect_error;
using test::golden;
using test::TemporaryFolder;

const std::string kStem = "diffusion_pytorch_model";

void save(const fs::path& path, const TensorMap& tensors) { save_tensors(path, tensors, true); }

void write_index(const fs::path& folder, const Json& map) {
  std::ofstream(folder / (kStem + ".safetensors.index.json")) << Json({{"weight_map", map}}).dump();
}

// Two shards, "a" in the first, "b" in the second.
void save_shards(const fs::path& folder) {
  save(folder / "one.safetensors", {{"a", at::arange(6, at::kFloat).view({2, 3})}});
  save(folder / "two.safetensors", {{"b", at::arange(4, at::kFloat)}});
  write_index(folder, {{"a", "one.safetensors"}, {"b", "two.safetensors"}});
}

TEST(SaveTensors, LoadsBackEqualInEveryType) {
  const TemporaryFolder folder;
  at::Generator generator = at::detail::createCPUGenerator(1);
  TensorMap tensors;
  for (const at::ScalarType type :
       {at::kBool, at::kByte, at::kChar, at::kShort, at::kInt, at::kLong, at::kHalf, at::kBFloat16,
        at::kFloat, at::kDouble, at::kFloat8_e4m3fn, at::kFloat8_e5m2, at::kUInt16, at::kUInt32,
        at::kUInt64}) {
    const at::Tensor values = at::empty({3, 5}, at::kFloat).uniform_(0, 2, generator);
    tensors[at::toString(type)] = values.to(type);
  }
  tensors["scalar"] = at::scalar_tensor(2.5);
  tensors["nothing"] = at::empty({0, 7});
  tensors["view"] = at::arange(12, at::kFloat).view({3, 4}).t();
  save_tensors(folder.path / "x.safetensors", tensors, false, {{"prompt", "a \"red\" sphere\n"}});
  const TensorMap loaded = load_tensors(folder.path / "x.safetensors");
  ASSERT_EQ(loaded.size(), tensors.size());
  for (const auto& [name, tensor] : tensors) {
    const at::Tensor& other = loaded.at(name);
    EXPECT_EQ(other.scalar_type(), tensor.scalar_type()) << name;
    ASSERT_EQ(other.sizes(), tensor.sizes()) << name;
    const at::Tensor whole = tensor.contiguous();
    EXPECT_EQ(std::memcmp(whole.const_data_ptr(), other.const_data_ptr(), whole.nbytes()), 0)
        << name;
  }
  EXPECT_EQ(SafetensorsFile(folder.path / "x.safetensors").metadata().at("prompt"),
            "a \"red\" sphere\n");
}

TEST(SaveTensors, KeepsAnExistingFileAndRefusesOtherTypes) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "x.safetensors";
  save_tensors(path, {{"a", at::ones({1})}}, false);
  expect_error(ErrorCode::conflict, "exists", [&] {
    save_tensors(path, {{"b", at::ones({1})}}, false);
  });
  expect_error(ErrorCode::usage, "'b'", [&] {
    save_tensors(path, {{"b", at::ones({1}, at::kComplexFloat)}}, true);
  });
  EXPECT_TRUE(load_tensors(path).contains("a"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder.path), fs::directory_iterator()), 1);
}

TEST(WeightFiles, CastsAsCopyDoesAcrossPieces) {
  const TemporaryFolder folder;
  at::Generator generator = at::detail::createCPUGenerator(2);
  // More than two pieces of 4 MiB, the last one ragged.
  const at::Tensor big = at::empty({3, 1'000'003}, at::kFloat).normal_(0, 1, generator);
  save(folder.path / (kStem + ".safetensors"),
       {{"big", big}, {"half", big.narrow(1, 0, 9).to(at::kHalf)}});
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble}) {
    WeightFiles files(folder.path, kStem, {.dtype = type});
    EXPECT_TRUE(at::equal(files.get("big", {3, 1'000'003}), big.to(type)));
    EXPECT_TRUE(at::equal(files.get("half", {3, 9}), big.narrow(1, 0, 9).to(at::kHalf).to(type)));
    const bool half_type = type == at::kBFloat16 || type == at::kHalf;
    EXPECT_EQ(files.get("half", {3, 9}, true).scalar_type(), half_type ? at::kFloat : type);
    Report report(true);
    EXPECT_NO_THROW(files.finish(report));
  }
}

TEST(WeightFiles, ReadsShards) {
  const TemporaryFolder folder;
  save_shards(folder.path);
  WeightFiles files(folder.path, kStem, {});
  EXPECT_TRUE(files.has("a"));
  EXPECT_FALSE(files.has("c"));
  EXPECT_TRUE(at::equal(files.get("a", {2, 3}), at::arange(6, at::kFloat).view({2, 3})));
  EXPECT_TRUE(at::equal(files.get("b", {4}), at::arange(4, at::kFloat)));
  EXPECT_EQ(files.bytes(), 40u);
}

TEST(WeightFiles, ListsMissingAndUnusedNames) {
  const TemporaryFolder folder;
  save_shards(folder.path);
  WeightFiles files(folder.path, kStem, {});
  EXPECT_EQ(files.get("c", {1'000'000, 1'000'000'000}).sizes(),
            at::IntArrayRef({1'000'000, 1'000'000'000}));
  for (int i = 0; i < 10; ++i) files.get("d" + std::to_string(i), {1});
  Report report;
  expect_error(ErrorCode::bad_data, "11 missing tensors: 'c', 'd0'", [&] { files.finish(report); });
  expect_error(ErrorCode::bad_data, "'d6' and 3 more", [&] { files.finish(report); });

  WeightFiles others(folder.path, kStem, {});
  others.get("a", {2, 3});
  others.finish(report);
  ASSERT_EQ(report.warnings().size(), 1u);
  EXPECT_NE(report.warnings()[0].find("1 unused tensor: 'b'"), std::string::npos);
  Report strict(true);
  expect_error(ErrorCode::bad_data, "'b'", [&] { others.finish(strict); });
  others.ignore("b");
  EXPECT_NO_THROW(others.finish(strict));
}

TEST(WeightFiles, RefusesWrongShapesTypesAndValues) {
  const TemporaryFolder folder;
  save(folder.path / (kStem + ".safetensors"),
       {{"a", at::ones({2, 3})},
        {"i", at::ones({2}, at::kInt)},
        {"nan", at::full({5}, std::nan(""))},
        {"inf", at::full({5}, -INFINITY).to(at::kBFloat16)}});
  WeightFiles files(folder.path, kStem, {});
  expect_error(ErrorCode::bad_data, "tensor 'a': expected shape [3, 2], got [2, 3]", [&] {
    files.get("a", {3, 2});
  });
  expect_error(ErrorCode::bad_data, "expected a floating dtype, got I32",
               [&] { files.get("i", {2}); });
  expect_error(ErrorCode::non_finite, "'nan' holds NaN or Inf", [&] { files.get("nan", {5}); });
  expect_error(ErrorCode::non_finite, "'inf' holds NaN or Inf", [&] { files.get("inf", {5}); });
}

TEST(WeightFiles, RefusesAFileCutWhileItIsRead) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / (kStem + ".safetensors");
  save(path, {{"a", at::ones({100'000})}});
  WeightFiles files(folder.path, kStem, {});
  fs::resize_file(path, 1000);
  expect_error(ErrorCode::bad_data, "the file ends within tensor 'a'",
               [&] { files.get("a", {100'000}); });
}

std::string hex(const at::Tensor& tensor) {
  const auto* bytes = static_cast<const unsigned char*>(tensor.const_data_ptr());
  std::string out;
  for (size_t i = 0; i < tensor.nbytes(); ++i) {
    for (const int digit : {bytes[i] >> 4, bytes[i] & 15}) out += "0123456789abcdef"[digit];
  }
  return out;
}

TEST(Python, FilesLoadBitEqualAndOursAreTheSameBytes) {
  const fs::path folder = golden("safetensors");
  const TensorMap tensors = load_tensors(folder / "all.safetensors");
  const Json expected = read_json(folder / "all.json");
  ASSERT_EQ(tensors.size(), expected.size());
  for (const auto& [name, value] : expected.items()) {
    EXPECT_EQ(tensors.at(name).sizes().vec(), value["shape"].get<std::vector<int64_t>>()) << name;
    EXPECT_EQ(hex(tensors.at(name)), value["hex"].get<std::string>()) << name;
  }
  const TemporaryFolder temporary;
  const fs::path ours = temporary.path / "ours.safetensors";
  save_tensors(ours, tensors, false, SafetensorsFile(folder / "all.safetensors").metadata());
  EXPECT_EQ(read_file(ours, 1 << 20), read_file(folder / "all.safetensors", 1 << 20));
}

TEST(Python, ReadsWhatWeWrite) {
  const char* python = std::getenv("FOVEA_PYTHON");
  const char* source = std::getenv("FOVEA_SOURCE_DIR");
  if (python == nullptr || source == nullptr)
    GTEST_SKIP() << "FOVEA_PYTHON or FOVEA_SOURCE_DIR is not set";
  const fs::path folder = golden("safetensors");
  TensorMap tensors = load_tensors(folder / "all.safetensors");
  const TemporaryFolder temporary;
  const auto check = [&](const fs::path& path) {
    return std::system(str("'", python, "' '", source, "/tests/golden/make_safetensors.py' '",
                           folder.string(), "' '", path.string(), "' 2>/dev/null")
                           .c_str());
  };
  save_tensors(temporary.path / "same.safetensors", tensors, false);
  EXPECT_EQ(check(temporary.path / "same.safetensors"), 0);
  tensors["scalar"] = at::scalar_tensor(2.25);
  save_tensors(temporary.path / "other.safetensors", tensors, false);
  EXPECT_NE(check(temporary.path / "other.safetensors"), 0);
}

// One model as diffusers saves it: in one file, in shards, in bf16.
TEST(Python, ShardsGiveTheSameParametersInBothTypes) {
  const fs::path folder = golden("safetensors");
  const TensorMap expected = load_tensors(folder / "single" / (kStem + ".safetensors"));
  EXPECT_EQ(expected.size(), read_json(folder / "model.json")["tensors"].get<size_t>());
  EXPECT_TRUE(fs::exists(folder / "sharded" / (kStem + ".safetensors.index.json")));
  WeightFiles shards(folder / "sharded", kStem, {});
  WeightFiles halves(folder / "bf16", kStem, {.dtype = at::kBFloat16});
  WeightFiles cast(folder / "sharded", kStem, {.dtype = at::kBFloat16});
  for (const auto& [name, tensor] : expected) {
    EXPECT_TRUE(at::equal(shards.get(name, tensor.sizes()), tensor)) << name;
    EXPECT_TRUE(at::equal(cast.get(name, tensor.sizes()), tensor.to(at::kBFloat16))) << name;
    EXPECT_TRUE(
        at::equal(halves.get(name, tensor.sizes(), true), tensor.to(at::kBFloat16).to(at::kFloat)))
        << name;
  }
  Report strict(true);
  for (WeightFiles* files : {&shards, &halves, &cast}) EXPECT_NO_THROW(files->finish(strict));
}

TEST(RandomParametersTest, AreSeededScaledAndTyped) {
  RandomParameters first(7, {.dtype = at::kBFloat16}), second(7, {.dtype = at::kBFloat16});
  const at::Tensor weight = first.get("blocks.0.ffn.weight", {256, 1024});
  EXPECT_TRUE(at::equal(weight, second.get("blocks.0.ffn.weight", {256, 1024})));
  EXPECT_EQ(weight.scalar_type(), at::kBFloat16);
  EXPECT_NEAR(weight.to(at::kFloat).std().item<double>(), 1.0 / 32, 1e-3);
  EXPECT_EQ(first.get("norm1.weight", {10}, true).scalar_type(), at::kFloat);
  EXPECT_NEAR(first.get("norm1.weight", {10000}).to(at::kFloat).mean().item<double>(), 1, 0.02);
  EXPECT_EQ(first.count(), 256 * 1024 + 10 + 10000);
}

}  // namespace
}  // namespace fovea
