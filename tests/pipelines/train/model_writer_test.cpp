#include "pipelines/train/model_writer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "core/weight_index.h"
#include "models/text/tokenizer/tokenizer.h"
#include "models/text/tokenizer/word_tokenizer.h"
#include "pipelines/model_folder.h"
#include "pipelines/schedulers/scheduler.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using test::expect_error;
using test::TemporaryFolder;

const std::string kStem = "diffusion_pytorch_model";

// A folder that Python's diffusers saved.
fs::path python_folder() {
  return fs::path(std::getenv("FOVEA_SOURCE_DIR")) / "assets/models/tiny-random";
}

FolderPlan tiny_plan() {
  FolderPlan plan;
  plan.words = {"a", "red", "sphere", ",", "rolls"};
  plan.text_encoder = {.vocab_size = models::word_vocab_size(plan.words),
                       .d_model = 16,
                       .d_kv = 4,
                       .d_ff = 24,
                       .num_layers = 2,
                       .num_heads = 4,
                       .num_buckets = 8,
                       .max_distance = 20,
                       .layer_norm_epsilon = 1e-5};
  plan.transformer = {.patch_size = {1, 1, 2},
                      .num_attention_heads = 2,
                      .attention_head_dim = 12,
                      .in_channels = 3,
                      .out_channels = 3,
                      .text_dim = 16,
                      .freq_dim = 32,
                      .ffn_dim = 48,
                      .num_layers = 2,
                      .cross_attn_norm = false,
                      .eps = 3e-6,
                      .rope_max_seq_len = 77};
  plan.autoencoder = {.base_dim = 5,
                      .decoder_base_dim = 6,
                      .z_dim = 3,
                      .dim_mult = {1, 2},
                      .num_res_blocks = 1,
                      .temperal_downsample = {true},
                      .dropout = 0.25,
                      .latents_mean = {0.1, -2, 1.0 / 3},
                      .latents_std = {1, 2, 3e-5},
                      .scale_factor_temporal = 2,
                      .scale_factor_spatial = 2};
  plan.flow_shift = 4.5;
  return plan;
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) {
    names.insert(entry.path().filename().string());
  }
  return names;
}

Json sorted(const Json& json) { return Json::parse(nlohmann::json::parse(json.dump()).dump()); }

TEST(ModelConfigs, EqualThoseThatPythonSavesOfTheSameSizes) {
  Report report(/*strict=*/true);
  const auto read = [&](const char* part, const char* file = "config.json") {
    return Config::read(python_folder() / part / file);
  };
  const auto without_book_keeping = [](Json json) {
    for (const char* key : {"_class_name", "_diffusers_version", "transformers_version", "dtype"}) {
      json.erase(key);
    }
    return sorted(json);
  };
  Config transformer = read("transformer");
  EXPECT_EQ(sorted(to_json(models::WanConfig::read(transformer))),
            without_book_keeping(transformer.json()));
  Config vae = read("vae");
  EXPECT_EQ(sorted(to_json(models::WanVaeConfig::read(vae))), without_book_keeping(vae.json()));
  Config text_encoder = read("text_encoder");
  EXPECT_EQ(sorted(to_json(models::Umt5Config::read(text_encoder, report))),
            without_book_keeping(text_encoder.json()));
  const Config scheduler = read("scheduler", "scheduler_config.json");
  EXPECT_EQ(sorted(unipc_config(3.0)), sorted(scheduler.json()));
}

TEST(FolderSkeleton, EqualsPythonsInWhatItSaysOfItself) {
  const TemporaryFolder folder;
  write_folder_skeleton(folder.path / "new", tiny_plan());
  EXPECT_EQ(sorted(read_json(folder.path / "new/model_index.json")),
            sorted(read_json(python_folder() / "model_index.json")));
  for (const char* part : {"transformer", "vae", "text_encoder"}) {
    std::set<std::string> keys, python_keys;
    const Json json = read_json(folder.path / "new" / part / "config.json");
    const Json python = read_json(python_folder() / part / "config.json");
    for (const auto& item : json.items()) keys.insert(item.key());
    for (const auto& item : python.items()) python_keys.insert(item.key());
    EXPECT_EQ(keys, python_keys) << part;
    for (const char* key : {"_class_name", "_diffusers_version", "transformers_version", "dtype"}) {
      EXPECT_EQ(json.value(key, Json()), python.value(key, Json())) << part;
    }
  }
}

TEST(FolderSkeleton, ReadsBackEqual) {
  const TemporaryFolder folder;
  const FolderPlan plan = tiny_plan();
  write_folder_skeleton(folder.path, plan);
  write_folder_skeleton(folder.path, plan);  // again, over itself
  Report report(/*strict=*/true);
  const ModelFolder model = ModelFolder::open(folder.path, report);
  EXPECT_FALSE(model.image_to_video);
  Config transformer = model.config("transformer");
  EXPECT_EQ(to_json(models::WanConfig::read(transformer)), to_json(plan.transformer));
  transformer.finish(report);
  Config vae = model.config("vae");
  EXPECT_EQ(to_json(models::WanVaeConfig::read(vae)), to_json(plan.autoencoder));
  vae.finish(report);
  Config text_encoder = model.config("text_encoder");
  const auto text = models::Umt5Config::read(text_encoder, report, model.text_encoder_class);
  EXPECT_EQ(to_json(text), to_json(plan.text_encoder));
  const auto scheduler =
      make_scheduler(model.config("scheduler", "scheduler_config.json"), {}, report);
  EXPECT_EQ(scheduler->describe()["flow_shift"], 4.5);
  EXPECT_EQ(scheduler->describe()["prediction_type"], "flow_prediction");
  const auto tokenizer =
      models::Tokenizer::open(model.component("tokenizer"), model.tokenizer_class);
  EXPECT_EQ(tokenizer.vocab_size(), plan.text_encoder.vocab_size);
  EXPECT_EQ(tokenizer.encode("a red sphere, rolls", 9), (std::vector<int32_t>{3, 4, 5, 6, 8, 1}));
}

TEST(FolderSkeleton, RefusesPartsThatDoNotFit) {
  const TemporaryFolder folder;
  const auto refuses = [&](const char* key, auto change, ErrorCode code = ErrorCode::bad_data) {
    FolderPlan plan = tiny_plan();
    change(plan);
    expect_error(code, key, [&] { write_folder_skeleton(folder.path / "new", plan); });
    EXPECT_FALSE(fs::exists(folder.path / "new/model_index.json"));
  };
  refuses("vocab_size", [](FolderPlan& plan) { plan.text_encoder.vocab_size -= 1; });
  refuses("text_encoder", [](FolderPlan& plan) { plan.text_encoder.bias_in_each_layer = false; });
  refuses("text_dim", [](FolderPlan& plan) { plan.transformer.text_dim = 17; });
  refuses("in_channels", [](FolderPlan& plan) { plan.transformer.in_channels = 4; });
  refuses("out_channels", [](FolderPlan& plan) { plan.transformer.out_channels = 4; });
  refuses(
      "latents_std", [](FolderPlan& plan) { plan.autoencoder.latents_std.pop_back(); },
      ErrorCode::usage);
  refuses(
      "words", [](FolderPlan& plan) { plan.words.push_back("two words"); }, ErrorCode::usage);
}

// `count` tensors of 40 bytes that all hold `value`.
TensorMap tensors(int count, float value) {
  TensorMap out;
  for (int i = 0; i < count; ++i) out[str("t", i)] = at::full({10}, value);
  return out;
}

// Expects FOLDER to hold exactly `count` tensors of `value` in these files.
void expect_set(const fs::path& folder, int count, float value, std::set<std::string> files,
                const std::string& stem = kStem) {
  EXPECT_EQ(names_in(folder), files);
  WeightFiles weights(folder, stem, {});
  for (int i = 0; i < count; ++i) {
    EXPECT_TRUE(weights.get(str("t", i), {10}).eq(value).all().item<bool>()) << i;
  }
  Report report(/*strict=*/true);
  weights.finish(report);
}

std::set<std::string> shard_names(int count, const std::string& stem = kStem) {
  std::set<std::string> names = {stem + ".safetensors.index.json"};
  for (int i = 1; i <= count; ++i) {
    names.insert(str(stem, "-0000", i, "-of-0000", count, ".safetensors"));
  }
  return names;
}

TEST(SaveSharded, ReplacesEverySetByEveryOther) {
  for (const std::string& stem : {kStem, std::string("model")}) {
    const TemporaryFolder folder;
    const fs::path path = folder.path / "new";
    const auto save = [&](int count, float value) {
      save_sharded(path, stem, tensors(count, value), /*max_shard_bytes=*/80);
    };
    const std::set<std::string> single = {stem + ".safetensors"};
    save(2, 1);
    expect_set(path, 2, 1, single, stem);
    save(6, 2);  // shards in place of a file
    expect_set(path, 6, 2, shard_names(3, stem), stem);
    save(5, 3);  // the same number of shards
    expect_set(path, 5, 3, shard_names(3, stem), stem);
    save(3, 4);  // fewer
    expect_set(path, 3, 4, shard_names(2, stem), stem);
    save(1, 5);  // a file in place of shards
    expect_set(path, 1, 5, single, stem);
    save(2, 6);
    expect_set(path, 2, 6, single, stem);
  }
}

TEST(SaveSharded, TheIndexSaysWhatPythonReads) {
  const TemporaryFolder folder;
  TensorMap all = tensors(3, 1);
  all["big"] = at::zeros({100}, at::kBFloat16);  // more than a shard holds
  save_sharded(folder.path, kStem, all, 80);
  const Json index = read_json(folder.path / (kStem + ".safetensors.index.json"));
  EXPECT_EQ(index["metadata"]["total_size"], 320);
  EXPECT_EQ(index["weight_map"]["big"], kStem + "-00001-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["t1"], kStem + "-00002-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"]["t2"], kStem + "-00003-of-00003.safetensors");
  EXPECT_EQ(index["weight_map"].size(), 4u);
  const WeightIndex read(folder.path, kStem);
  for (const SafetensorsFile& file : read.files()) EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(read.find("big")->tensor->type, StoredType::bf16);
}

TEST(SaveSharded, LeavesOtherFilesAlone) {
  const TemporaryFolder folder;
  const std::set<std::string> others = {"config.json", kStem + ".fp16.safetensors",
                                        kStem + "-notes.safetensors", "model.safetensors",
                                        "model-00001-of-00002.safetensors"};
  for (const std::string& name : others) test::write_bytes(folder.path / name, "kept");
  save_sharded(folder.path, kStem, tensors(4, 1), 80);
  save_sharded(folder.path, kStem, tensors(1, 1), 80);
  std::set<std::string> expected = others;
  expected.insert(kStem + ".safetensors");
  EXPECT_EQ(names_in(folder.path), expected);
}

TEST(SaveSharded, AFailureLeavesTheEarlierSet) {
  for (const int before : {2, 6, 4}) {  // one file, as many shards, fewer
    const TemporaryFolder folder;
    save_sharded(folder.path, kStem, tensors(before, 1), 80);
    TensorMap bad = tensors(6, 2);
    bad["t4"] = at::zeros({10}, at::kComplexFloat);  // cannot be stored; it is in the last shard
    expect_error(ErrorCode::usage, "t4", [&] { save_sharded(folder.path, kStem, bad, 80); });
    std::set<std::string> files = names_in(folder.path);
    EXPECT_EQ(files.size(), before == 2 ? 1u : before / 2 + 1u);
    expect_set(folder.path, before, 1, files);
    save_sharded(folder.path, kStem, tensors(6, 3), 80);  // the next one cleans up
    expect_set(folder.path, 6, 3, shard_names(3));
  }
}

TEST(SaveSharded, RefusesNothing) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::usage, "nothing to save",
               [&] { save_sharded(folder.path, kStem, {}, 8); });
  expect_error(ErrorCode::usage, "0 bytes",
               [&] { save_sharded(folder.path, kStem, tensors(1, 1), 0); });
  expect_error(ErrorCode::usage, "x", [&] {
    save_sharded(folder.path, kStem, {{"x", at::Tensor()}}, 8);
  });
  EXPECT_TRUE(names_in(folder.path).empty());
}

}  // namespace
}  // namespace fovea::pipelines
