#include "models/vit/clip_vision/clip_vision.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "models/vit/clip_vision/activation.h"
#include "tests/support/golden.h"

namespace fovea::models {
namespace {

ClipVision load(const std::string& name, at::ScalarType dtype = at::kFloat, bool strict = true) {
  Report report(strict);
  return load_clip_vision(test::golden("clip") / name, {.dtype = dtype}, report);
}

class ClipTower : public testing::TestWithParam<const char*> {};

TEST_P(ClipTower, EqualsTransformers) {
  const c10::InferenceMode inference;
  const std::string name = GetParam();
  const TensorMap expected = load_tensors(test::golden("clip") / "towers.safetensors");
  const ClipVision model = load(name);
  const at::Tensor pixels = expected.at(name + ".pixels");
  Attention attention;
  const int64_t layers = model.config().num_hidden_layers;
  double worst = 0;
  for (int64_t i = 0; i < layers; ++i) {
    const double error = test::relative_error(model.hidden_state(pixels, i, attention),
                                              expected.at(str(name, ".state", i)));
    EXPECT_LE(error, 1e-5) << "state " << i;
    worst = std::max(worst, error);
  }
  // The last one is the last layer's output, before the norm of the pooled token.
  EXPECT_LE(test::relative_error(model.hidden_state(pixels, layers, attention),
                                 expected.at(str(name, ".state", layers))),
            1e-5);
  EXPECT_LE(test::relative_error(model.pooled(pixels, attention), expected.at(name + ".pooled")),
            1e-5);
  EXPECT_TRUE(at::equal(model.next_to_last(pixels, attention),
                        model.hidden_state(pixels, layers - 1, attention)));
  std::printf("%s: %.2e\n", name.c_str(), worst);
  for (const auto& [what, count] : attention.counts())
    EXPECT_EQ(what.rfind("self: ", 0), 0u) << what;

  const ClipVision half = load(name, at::kBFloat16);
  const at::Tensor rounded = half.next_to_last(pixels, attention);
  EXPECT_EQ(rounded.scalar_type(), at::kBFloat16);
  EXPECT_LE(test::relative_error(rounded, expected.at(name + ".half")), 1e-2);
}

INSTANTIATE_TEST_SUITE_P(Sizes, ClipTower,
                         testing::Values("head12", "head64", "head80", "ragged", "projected"),
                         [](const auto& info) { return std::string(info.param); });

TEST(ClipVision, ReadsTheVisionHalfOfAWholeModel) {
  const c10::InferenceMode inference;
  const TensorMap expected = load_tensors(test::golden("clip") / "towers.safetensors");
  const ClipVision model = load("whole", at::kFloat, /*strict=*/false);
  Attention attention;
  EXPECT_LE(test::relative_error(model.next_to_last(expected.at("whole.pixels"), attention),
                                 expected.at("whole.state2")),
            1e-5);
}

TEST(ClipVision, ActivationsEqualTransformers) {
  const TensorMap expected = load_tensors(test::golden("clip") / "towers.safetensors");
  int64_t compared = 0;
  for (const auto& [key, value] : expected) {
    const std::string prefix = "activation.";
    if (key.rfind(prefix, 0) != 0 || key == "activation.x") continue;
    const std::string name = key.substr(prefix.size());
    ASSERT_TRUE(is_activation(name)) << name;
    EXPECT_LE(test::relative_error(activation(name, expected.at("activation.x")), value), 1e-6)
        << name;
    ++compared;
  }
  EXPECT_EQ(compared, 14);
  EXPECT_FALSE(is_activation("prelu"));
}

TEST(ClipVision, RefusesPicturesOfAnotherSize) {
  const ClipVision model = load("head12");
  Attention attention;
  const std::vector<std::vector<int64_t>> shapes{{1, 3, 28, 30}, {1, 4, 28, 28}, {3, 28, 28}};
  for (const std::vector<int64_t>& shape : shapes) {
    try {
      model.next_to_last(at::zeros(shape), attention);
      ADD_FAILURE() << at::IntArrayRef(shape);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_data);
    }
  }
}

TEST(ClipVision, RefusesUnsupportedOptionsByName) {
  const std::vector<std::pair<Json, std::string>> wrong{
      {{{"hidden_act", "prelu"}}, "hidden_act"},
      {{{"hidden_size", 0}}, "hidden_size"},
      {{{"hidden_size", 10}, {"num_attention_heads", 3}}, "num_attention_heads"},
      {{{"num_hidden_layers", 0}}, "num_hidden_layers"},
      {{{"num_channels", 4}}, "num_channels"},
      {{{"image_size", {224, 224}}}, "image_size"},
      {{{"image_size", 16}, {"patch_size", 32}}, "patch_size"},
      {{{"model_type", "siglip_vision_model"}}, "model_type"},
      {{{"model_type", "clip"}, {"vision_config", 3}}, "vision_config"},
      {{{"layer_norm_eps", "small"}}, "layer_norm_eps"},
      {{{"no_such_key", 1}}, "no_such_key"},
  };
  for (const auto& [json, key] : wrong) {
    Report report(/*strict=*/true);
    try {
      ClipVisionConfig::read(Config(json, "config.json"), report);
      ADD_FAILURE() << json.dump();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_data);
      EXPECT_NE(std::string(error.what()).find("'" + key + "'"), std::string::npos) << error.what();
    }
  }
}

TEST(ClipVision, MissingWeightsAreNamed) {
  Report report;
  ClipVisionConfig config =
      ClipVisionConfig::read(Config::read(test::golden("clip") / "head12" / "config.json"), report);
  config.num_hidden_layers += 1;
  WeightFiles files(test::golden("clip") / "head12", "model", {});
  const ClipVision model(config, files);
  try {
    files.finish(report);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("encoder.layers.3."), std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace fovea::models
