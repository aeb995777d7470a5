#include "core/weight_index.h"

#include <sys/stat.h>

#include "core/json.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using test::write_bytes;

const std::string kStem = "diffusion_pytorch_model";

// A file with tensors of four bytes each.
void write_file(const fs::path& path, const std::vector<std::string>& names) {
  SafetensorsHeader header;
  for (const std::string& name : names) header.tensors.push_back({name, StoredType::f32, {1}});
  write_bytes(path, safetensors_preamble(header) + std::string(4 * names.size(), '\0'));
}

void write_index(const fs::path& folder, const std::string& text) {
  write_bytes(folder / (kStem + ".safetensors.index.json"), text);
}

void refused(const fs::path& folder, const std::string& reason) {
  expect_error(ErrorCode::bad_data, reason, [&] { WeightIndex(folder, kStem); });
}

TEST(WeightIndex, FindsTensorsInShards) {
  const TemporaryFolder folder;
  write_file(folder.path / "m-1.safetensors", {"a", "b"});
  write_file(folder.path / "m-2.safetensors", {"c", "extra"});
  write_index(
      folder.path,
      R"({"metadata":{"total_size":16},"weight_map":{"a":"m-1.safetensors","c":"m-2.safetensors",)"
      R"("b":"./m-1.safetensors"}})");
  // One file under two names would hold its tensors twice.
  refused(folder.path, "is in");
  write_index(folder.path, R"({"weight_map":{"a":"m-1.safetensors","c":"m-2.safetensors"}})");
  const WeightIndex index(folder.path, kStem);
  EXPECT_EQ(index.files().size(), 2u);
  EXPECT_EQ(index.entries().size(), 4u);
  EXPECT_EQ(index.find("c")->file->path().filename(), "m-2.safetensors");
  EXPECT_EQ(index.find("nothing"), nullptr);
  EXPECT_EQ(index.bytes(), 16u);
}

TEST(WeightIndex, TakesTheFilesThatPythonTakes) {
  const TemporaryFolder folder;
  for (const std::string stem : {"diffusion_pytorch_model", "model"}) {
    write_file(folder.path / (stem + ".safetensors"), {"single"});
    write_file(folder.path / (stem + "-00001-of-00001.safetensors"), {"shard"});
    write_bytes(folder.path / (stem + ".safetensors.index.json"),
                R"({"weight_map":{"shard":")" + stem + R"(-00001-of-00001.safetensors"}})");
  }
  EXPECT_NE(WeightIndex(folder.path, "diffusion_pytorch_model").find("shard"), nullptr);
  EXPECT_NE(WeightIndex(folder.path, "model").find("single"), nullptr);
}

TEST(WeightIndex, TakesTheOnlyVariant) {
  const TemporaryFolder folder;
  EXPECT_FALSE(has_weights(folder.path, kStem));
  write_file(folder.path / (kStem + ".fp16.safetensors"), {"half"});
  EXPECT_EQ(WeightIndex(folder.path, kStem).variant(), "fp16");
  write_file(folder.path / (kStem + ".bf16-00001-of-00001.safetensors"), {"brain"});
  EXPECT_EQ(WeightIndex(folder.path, kStem).variant(), "fp16");
  write_bytes(folder.path / (kStem + ".safetensors.index.bf16.json"),
              R"({"weight_map":{"brain":")" + kStem + R"(.bf16-00001-of-00001.safetensors"}})");
  refused(folder.path, "several variants are there: bf16, fp16");
  fs::remove(folder.path / (kStem + ".fp16.safetensors"));
  EXPECT_NE(WeightIndex(folder.path, kStem).find("brain"), nullptr);
  write_file(folder.path / (kStem + ".safetensors"), {"plain"});
  EXPECT_EQ(WeightIndex(folder.path, kStem).variant(), "");
}

TEST(WeightIndex, NamesWhatIsMissing) {
  const TemporaryFolder folder;
  refused(folder.path / "none", "no such folder");
  refused(folder.path, kStem + ".safetensors: no such file");
  write_bytes(folder.path / (kStem + ".bin"), "x");
  refused(folder.path, kStem + ".bin' is there, but weights are read from safetensors files only");
  write_index(folder.path, R"({"weight_map":{"a":"m-1.safetensors"}})");
  refused(folder.path,
          "m-1.safetensors: no such file, and " + kStem + ".safetensors.index.json lists");
  write_file(folder.path / "m-1.safetensors", {"b"});
  refused(folder.path, "m-1.safetensors: does not hold 'a'");
  write_file(folder.path / "m-1.safetensors", {"a"});
  EXPECT_NO_THROW(WeightIndex(folder.path, kStem));
  fs::resize_file(folder.path / "m-1.safetensors",
                  fs::file_size(folder.path / "m-1.safetensors") - 1);
  refused(folder.path, "m-1.safetensors: tensor 'a': bytes 0 to 4 are not within");
}

TEST(WeightIndex, RefusesPathsThatLeaveTheFolder) {
  const TemporaryFolder folder;
  const fs::path inner = folder.path / "inner";
  fs::create_directory(inner);
  write_file(folder.path / "x.safetensors", {"a"});
  for (const std::string path : {"../x.safetensors", "/x.safetensors", "y/../../x.safetensors",
                                 "..", "", "x\\u0000.safetensors"}) {
    write_index(inner, R"({"weight_map":{"a":")" + path + R"("}})");
    refused(inner, "leaves the folder");
  }
  // A link is how download caches store files.
  fs::create_symlink("../x.safetensors", inner / "link.safetensors");
  write_index(inner, R"({"weight_map":{"a":"link.safetensors"}})");
  EXPECT_NE(WeightIndex(inner, kStem).find("a"), nullptr);
}

TEST(WeightIndex, RefusesMalformedIndexFiles) {
  const TemporaryFolder folder;
  const std::string expected = "expected an object 'weight_map'";
  for (const char* text : {"[]", "{}", "1", R"({"weight_map":[]})", R"({"weight_map":{}})",
                           R"({"weight_map":null})"}) {
    write_index(folder.path, text);
    refused(folder.path, expected);
  }
  write_index(folder.path, R"({"weight_map":{"a":1}})");
  refused(folder.path, "key 'a': expected a file name, got number");
  write_index(folder.path, R"({"weight_map":{"a":"m-1.safetensors","a":"m-2.safetensors"}})");
  refused(folder.path, "key 'a' appears twice");
  write_index(folder.path, R"({"weight_map":)");
  refused(folder.path, "malformed JSON at byte");
  fs::remove(folder.path / (kStem + ".safetensors.index.json"));
  fs::create_directory(folder.path / (kStem + ".safetensors.index.json"));
  refused(folder.path, "is a folder");
  fs::remove(folder.path / (kStem + ".safetensors.index.json"));
  ASSERT_EQ(mkfifo((folder.path / (kStem + ".safetensors")).c_str(), 0600), 0);
  refused(folder.path, "not a regular file");
}

TEST(WeightIndex, RefusesANameInTwoShards) {
  const TemporaryFolder folder;
  write_file(folder.path / "m-1.safetensors", {"a", "b"});
  write_file(folder.path / "m-2.safetensors", {"b", "c"});
  write_index(folder.path, R"({"weight_map":{"a":"m-1.safetensors","c":"m-2.safetensors"}})");
  refused(folder.path, "m-2.safetensors: tensor 'b' is in m-1.safetensors as well");
}

}  // namespace
}  // namespace fovea
