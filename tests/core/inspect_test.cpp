#include "core/inspect.h"

#include <sys/stat.h>

#include <cstdlib>

#include "core/safetensors.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using test::write_bytes;

void write_file(const fs::path& path, std::vector<StoredTensor> tensors) {
  SafetensorsHeader header{std::move(tensors), {{"format", "pt"}}};
  const std::string preamble = safetensors_preamble(header);
  write_bytes(path, preamble + std::string(header.tensors.back().end, '\0'));
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

TEST(Describe, ListsTheTensorsOfAFile) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "x.safetensors";
  write_file(path, {{"w\x1b", StoredType::f32, {300, 10}},
                    {"h", StoredType::bf16, {7}},
                    {"ids", StoredType::i64, {2}}});
  const Description out = describe(path);
  EXPECT_EQ(out.json["kind"], "safetensors");
  EXPECT_EQ(out.json["num_tensors"], 3);
  EXPECT_EQ(out.json["parameters"], 3009);
  EXPECT_EQ(out.json["bytes"], 12000 + 14 + 16);
  EXPECT_EQ(out.json["memory_bytes"]["fp32"], 12000 + 28 + 16);
  EXPECT_EQ(out.json["memory_bytes"]["bf16"], 6000 + 14 + 16);
  EXPECT_EQ(out.json["dtypes"]["F32"],
            (Json{{"tensors", 1}, {"parameters", 3000}, {"bytes", 12000}}));
  EXPECT_EQ(out.json["metadata"], (Json{{"format", "pt"}}));
  EXPECT_EQ(out.json["tensors"].size(), 3u);
  EXPECT_EQ(out.json["tensors"][0]["name"], "ids");
  EXPECT_EQ(out.json["tensors"][1]["shape"], (Json{300, 10}));
  EXPECT_TRUE(contains(out.text, "3,009 parameters in 3 tensors")) << out.text;
  EXPECT_TRUE(contains(out.text, "w\\x1b  F32 [300,10]  12.00 kB")) << out.text;
  EXPECT_FALSE(contains(out.text, "\x1b"));
}

// A folder of two networks, one of them in shards and one without weights that can be read.
void make_model(const fs::path& folder) {
  for (const char* name : {"transformer", "text_encoder", "scheduler", "vae"})
    fs::create_directory(folder / name);
  write_bytes(
      folder / "model_index.json",
      R"({"_class_name":"WanPipeline","_diffusers_version":"0.1","boundary_ratio":null,)"
      R"("transformer":["diffusers","WanTransformer3DModel"],"image_encoder":[null,null],)"
      R"("text_encoder":["transformers","UMT5EncoderModel"],"scheduler":["diffusers","UniPC"],)"
      R"("vae":["diffusers","AutoencoderKLWan"],"tokenizer":["transformers","T5TokenizerFast"]})");
  const std::string stem = "diffusion_pytorch_model";
  write_file(folder / "transformer/a.safetensors", {{"a", StoredType::f32, {10}}});
  write_file(folder / "transformer/b.safetensors", {{"b", StoredType::f16, {5}}});
  write_bytes(folder / "transformer" / (stem + ".safetensors.index.json"),
              R"({"weight_map":{"a":"a.safetensors","b":"b.safetensors"}})");
  write_bytes(folder / "transformer/config.json",
              R"({"_class_name":"WanTransformer3DModel","num_layers":2})");
  write_file(folder / "text_encoder/model.safetensors", {{"t", StoredType::f32, {100}}});
  write_bytes(folder / "text_encoder/config.json",
              R"({"architectures":["UMT5EncoderModel"],"d_model":64})");
  write_bytes(folder / "scheduler/scheduler_config.json",
              R"({"_class_name":"UniPC","flow_shift":3.0})");
  write_bytes(folder / "vae" / (stem + ".bin"), "x");
}

TEST(Describe, AddsUpTheComponentsOfAModel) {
  const TemporaryFolder folder;
  make_model(folder.path);
  const Description out = describe(folder.path);
  EXPECT_EQ(out.json["kind"], "model");
  EXPECT_EQ(out.json["class"], "WanPipeline");
  EXPECT_EQ(out.json["parameters"], 115);
  EXPECT_EQ(out.json["bytes"], 450);
  EXPECT_EQ(out.json["memory_bytes"], (Json{{"fp32", 460}, {"bf16", 230}}));
  EXPECT_EQ(out.json["dtypes"]["F32"]["tensors"], 2);
  const Json& parts = out.json["components"];
  EXPECT_EQ(parts.size(), 5u);
  EXPECT_EQ(parts["transformer"]["files"].size(), 2u);
  EXPECT_EQ(parts["transformer"]["config"]["num_layers"], 2);
  EXPECT_EQ(parts["text_encoder"]["class"], "UMT5EncoderModel");
  EXPECT_EQ(parts["scheduler"]["config"]["flow_shift"], 3.0);
  EXPECT_EQ(parts["vae"]["unread_files"], (Json{"diffusion_pytorch_model.bin"}));
  EXPECT_EQ(parts["tokenizer"]["missing"], true);
  EXPECT_TRUE(
      contains(out.text, "transformer: WanTransformer3DModel\n  15 parameters in 2 tensors"))
      << out.text;
  EXPECT_TRUE(contains(out.text, "config: num_layers 2")) << out.text;
  EXPECT_TRUE(contains(out.text, "tokenizer: T5TokenizerFast, its folder is missing")) << out.text;
  EXPECT_TRUE(contains(out.text, "diffusion_pytorch_model.bin: not read")) << out.text;
}

TEST(Describe, TakesOneComponentAndAnIndexFile) {
  const TemporaryFolder folder;
  make_model(folder.path);
  EXPECT_EQ(describe(folder.path / "text_encoder").json["class"], "UMT5EncoderModel");
  EXPECT_EQ(describe(folder.path / "transformer").json["parameters"], 15);
  const fs::path index = folder.path / "transformer/diffusion_pytorch_model.safetensors.index.json";
  EXPECT_EQ(describe(index).json["parameters"], 15);
  EXPECT_TRUE(contains(describe(index).text, "files: a.safetensors (40 B), b.safetensors (10 B)"));
}

TEST(Describe, CountsWhatPythonCounts) {
  const char* golden = std::getenv("FOVEA_GOLDEN_DIR");
  if (golden == nullptr) GTEST_SKIP() << "FOVEA_GOLDEN_DIR is not set";
  const fs::path folder = fs::path(golden) / "safetensors";
  const Json expected = read_json(folder / "model.json");
  for (const char* name : {"single", "sharded", "bf16"}) {
    const Json json = describe(folder / name).json;
    EXPECT_EQ(json["class"], "WanTransformer3DModel");
    EXPECT_EQ(json["parameters"], expected["parameters"]);
    EXPECT_EQ(json["num_tensors"], expected["tensors"]);
    EXPECT_EQ(json["memory_bytes"]["bf16"], 2 * expected["parameters"].get<int64_t>());
  }
}

TEST(Describe, RefusesWhatItDoesNotKnow) {
  const TemporaryFolder folder;
  const auto refused = [&](const fs::path& path, const std::string& reason) {
    expect_error(ErrorCode::bad_data, reason, [&] { describe(path); });
  };
  refused(folder.path / "none", "no such file or folder");
  refused(folder.path, "holds neither model_index.json nor");
  write_bytes(folder.path / "x.txt", "x");
  refused(folder.path / "x.txt", "expected a .safetensors file");
  write_bytes(folder.path / "x.safetensors", "x");
  refused(folder.path / "x.safetensors", "too few for a safetensors file");
  ASSERT_EQ(mkfifo((folder.path / "pipe.safetensors").c_str(), 0600), 0);
  refused(folder.path / "pipe.safetensors", "not a regular file");
  write_bytes(folder.path / "model_index.json", "[]");
  refused(folder.path, "expected a JSON object");
  write_bytes(folder.path / "model_index.json", R"({"../x":["diffusers","X"]})");
  refused(folder.path, "key '../x': expected a folder name");
  write_bytes(folder.path / "model_index.json", R"({"_class_name":7,"x":["diffusers","X"]})");
  fs::create_directory(folder.path / "x");
  write_bytes(folder.path / "x/config.json", "{");
  refused(folder.path, "malformed JSON");
}

}  // namespace
}  // namespace fovea
