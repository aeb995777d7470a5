#include "models/dit/wan/wan.h"

#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/json.h"
#include "tests/support/golden.h"

namespace fovea::models {
namespace {

using test::golden;
using test::relative_error;

WanTransformer load(const fs::path& folder, at::ScalarType dtype = at::kFloat) {
  Report report(/*strict=*/true);
  Config config = Config::read(folder / "config.json");
  const WanConfig wan = WanConfig::read(config);
  config.finish(report);
  WeightFiles files(folder, "diffusion_pytorch_model", {.dtype = dtype, .device = at::kCPU});
  WanTransformer model(wan, files);
  files.finish(report);
  return model;
}

WanInputs inputs_of(const TensorMap& tensors) {
  WanInputs inputs{
      tensors.at("hidden_states"), tensors.at("timestep"), tensors.at("encoder_hidden_states"), {}};
  if (tensors.count("encoder_hidden_states_image"))
    inputs.image = tensors.at("encoder_hidden_states_image");
  return inputs;
}

// Every case that tests/golden/make_transformer.py has run through diffusers.
TEST(WanTransformer, EqualsDiffusers) {
  const c10::InferenceMode inference;
  const Json cases = read_json(golden("transformer") / "cases.json");
  ASSERT_GE(cases.size(), 10u);
  for (const Json& item : cases) {
    const std::string name = item["name"];
    const TensorMap tensors = load_tensors(golden("transformer") / (name + ".safetensors"));
    WanTransformer model = load(golden("transformer") / name);
    Attention attention;
    const double error =
        relative_error(model.forward(inputs_of(tensors), {}, attention), tensors.at("output"));
    EXPECT_LE(error, 1e-5) << name;
    std::printf("%-20s relative error %.2e\n", name.c_str(), error);
  }
}

TEST(WanTransformer, BatchRowsDoNotMix) {
  const c10::InferenceMode inference;
  const TensorMap tensors = load_tensors(golden("transformer") / "head128.safetensors");
  WanTransformer model = load(golden("transformer") / "head128");
  Attention attention;
  const WanInputs both = inputs_of(tensors);
  const WanInputs second{
      both.latents.slice(0, 1), both.timestep.slice(0, 1), both.text.slice(0, 1), {}};
  const at::Tensor alone = model.forward(second, {}, attention);
  EXPECT_LE(relative_error(alone, model.forward(both, {}, attention).slice(0, 1)), 1e-6);
}

TEST(WanTransformer, RunsInBf16) {
  const c10::InferenceMode inference;
  const TensorMap tensors = load_tensors(golden("transformer") / "head64.safetensors");
  WanTransformer model = load(golden("transformer") / "head64", at::kBFloat16);
  WanInputs inputs = inputs_of(tensors);
  inputs.latents = inputs.latents.to(at::kBFloat16);
  inputs.text = inputs.text.to(at::kBFloat16);
  Attention attention;
  const at::Tensor out = model.forward(inputs, {}, attention);
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_LE(relative_error(out, tensors.at("output")), 3e-2);
}

TEST(WanTransformer, EveryAttentionGoesThroughTheSeam) {
  const c10::InferenceMode inference;
  const TensorMap tensors = load_tensors(golden("transformer") / "i2v_clip.safetensors");
  WanTransformer model = load(golden("transformer") / "i2v_clip");
  Attention attention;
  model.forward(inputs_of(tensors), {}, attention);
  const int64_t layers = model.config().num_layers;
  EXPECT_EQ(attention.counts().at("self: dense on cpu"), layers);
  EXPECT_EQ(attention.counts().at("cross: dense on cpu"), 2 * layers);  // text, then image tokens
}

TEST(WanTransformer, RefusesAGridThatDoesNotFit) {
  const c10::InferenceMode inference;
  const TensorMap tensors = load_tensors(golden("transformer") / "head12.safetensors");
  WanTransformer model = load(golden("transformer") / "head12");
  Attention attention;
  WanInputs inputs = inputs_of(tensors);
  inputs.latents = at::zeros({1, 4, 2, 5, 6});
  EXPECT_THROW(model.forward(inputs, {}, attention), Error);
  inputs.latents = at::zeros({1, 4, 1, 2, 2 * (model.config().rope_max_seq_len + 1)});
  EXPECT_THROW(model.forward(inputs, {}, attention), Error);
}

std::string refusal(const std::string& text) {
  try {
    Config config(parse_json(text, "config.json"), "config.json");
    WanConfig::read(config);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    return error.what();
  }
  return "";
}

TEST(WanConfig, NamesTheKeyItRefuses) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"patch_size": [1, 2]})", "patch_size"},
      {R"({"patch_size": [1, 0, 2]})", "patch_size"},
      {R"({"attention_head_dim": 13})", "attention_head_dim"},
      {R"({"num_layers": "two"})", "num_layers"},
      {R"({"num_layers": -1})", "num_layers"},
      {R"({"ffn_dim": 1e9})", "ffn_dim"},
      {R"({"eps": "small"})", "eps"},
      {R"({"added_kv_proj_dim": 100})", "added_kv_proj_dim"},
  };
  for (const auto& [text, key] : cases)
    EXPECT_NE(refusal(text).find(key), std::string::npos) << text;
}

TEST(WanConfig, DefaultsAreThoseOfDiffusers) {
  Config config(Json::object(), "config.json");
  const WanConfig wan = WanConfig::read(config);
  EXPECT_EQ(wan.inner_dim(), 5120);
  EXPECT_EQ(wan.num_layers, 40);
  EXPECT_EQ(wan.text_dim, 4096);
  EXPECT_FALSE(wan.image_dim.has_value());
}

TEST(RopeTables, RotateByThePositionOnEachAxis) {
  WanConfig config;
  config.attention_head_dim = 12;  // 4 for time, height and width each
  const RopeTables tables = make_rope_tables(config, {2, 3, 5}, at::kCPU);
  ASSERT_EQ(tables.cos.sizes(), at::IntArrayRef({30, 6}));
  const int64_t frame = 1, row = 2, column = 4;
  const at::Tensor sin = tables.sin[(frame * 3 + row) * 5 + column];
  const double slow = 1.0 / std::sqrt(10000.0);
  const double expected[6] = {1.0, slow, 2.0, 2 * slow, 4.0, 4 * slow};
  for (int i = 0; i < 6; ++i) EXPECT_NEAR(sin[i].item<double>(), std::sin(expected[i]), 1e-7);
}

}  // namespace
}  // namespace fovea::models
