#include "models/text/umt5/umt5_encoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/device.h"
#include "core/json.h"
#include "tests/support/golden.h"

namespace fovea::models {
namespace {

using test::golden;
using test::relative_error;

fs::path variant(const std::string& name) { return golden("umt5") / name; }

Umt5Encoder load(const std::string& name, at::ScalarType dtype = at::kFloat) {
  Report report(/*strict=*/true);
  return Umt5Encoder::load(variant(name), {.dtype = dtype}, report,
                           read_file(variant(name) / "class.txt", 100));
}

// Rows of `x` that are not padding.
at::Tensor valid_rows(const at::Tensor& x, const at::Tensor& valid_len) {
  const at::Tensor mask = at::arange(x.size(1)).unsqueeze(0) < valid_len.unsqueeze(1);
  return x.index({mask});
}

class EqualStates : public testing::TestWithParam<const char*> {
 protected:
  // The matrices are tiny; on a busy machine threads would only wait for each other.
  static void SetUpTestSuite() { set_num_threads(1); }
};

TEST_P(EqualStates, WithAndWithoutPadding) {
  const TensorMap expected = load_tensors(variant(GetParam()) / "golden.safetensors");
  const at::Tensor ids = expected.at("ids");
  const at::Tensor valid_len = expected.at("valid_len");
  const Umt5Encoder encoder = load(GetParam());
  Attention attention;
  const at::Tensor hidden = encoder.forward(ids, valid_len, attention);
  const double padded =
      relative_error(valid_rows(hidden, valid_len), valid_rows(expected.at("hidden"), valid_len));
  EXPECT_LE(padded, 1e-5);
  RecordProperty("relative_error", std::to_string(padded * 1e6) + "e-6");
  const int64_t first = valid_len[0].item<int64_t>();
  const at::Tensor alone = encoder.forward(ids.narrow(0, 0, 1).narrow(1, 0, first), {}, attention);
  EXPECT_LE(relative_error(alone, expected.at("alone")), 1e-5);
  EXPECT_LE(relative_error(alone, expected.at("hidden").narrow(0, 0, 1).narrow(1, 0, first)), 1e-5);
}

// Half types round differently from one matrix product to the next: both sides are compared with
// fp32, and ours may not be further from it than Python's by more than half.
TEST_P(EqualStates, InHalfTypes) {
  const TensorMap expected = load_tensors(variant(GetParam()) / "golden.safetensors");
  const at::Tensor valid_len = expected.at("valid_len");
  const at::Tensor exact = valid_rows(expected.at("hidden"), valid_len);
  for (const auto& [key, dtype] :
       {std::pair("bf16", at::kBFloat16), std::pair("fp16", at::kHalf)}) {
    Attention attention;
    const at::Tensor hidden =
        load(GetParam(), dtype).forward(expected.at("ids"), valid_len, attention);
    EXPECT_EQ(hidden.scalar_type(), dtype);
    const at::Tensor python = valid_rows(expected.at(key), valid_len);
    EXPECT_LE(relative_error(valid_rows(hidden, valid_len), exact),
              1.5 * relative_error(python, exact) + 1e-5)
        << key;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, EqualStates,
                         testing::Values("umt5_8", "umt5_12", "umt5_64", "umt5_128", "t5_8",
                                         "t5_12", "t5_64", "t5_128", "relu", "gelu", "gated_silu",
                                         "gated_relu", "gelu_new", "quick_gelu", "gated_tanh",
                                         "t5_default", "odd_buckets", "no_layers", "aliases",
                                         "embed_tokens", "both_names"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Umt5Encoder, EmbedsPromptsAsWanPipelineDoes) {
  const fs::path folder = variant("pipeline");
  Report report(/*strict=*/true);
  const Umt5Encoder encoder =
      Umt5Encoder::load(folder / "text_encoder", {}, report, "UMT5EncoderModel");
  const Tokenizer tokenizer = Tokenizer::open(folder / "tokenizer");
  const auto prompts = read_json(folder / "prompts.json").get<std::vector<std::string>>();
  const TensorMap expected = load_tensors(folder / "golden.safetensors");
  for (const int64_t length : {512, 226, 7}) {
    Attention attention;
    const at::Tensor embeds = encoder.encode(tokenizer, prompts, length, attention);
    const at::Tensor& python = expected.at("embeds_" + std::to_string(length));
    EXPECT_LE(relative_error(embeds, python), 1e-5) << length;
    EXPECT_TRUE(at::equal(embeds.eq(0), python.eq(0))) << "other rows are zero";
  }
}

TEST(Umt5Encoder, RefusesTokensItDoesNotHave) {
  RandomParameters random(1, {});
  const Umt5Encoder encoder({.vocab_size = 3, .d_model = 8, .d_kv = 4, .num_layers = 1}, random);
  Attention attention;
  try {
    encoder.encode(Tokenizer::open(variant("pipeline") / "tokenizer"), {"", "a red sphere"}, 16,
                   attention);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    EXPECT_EQ(error.where(), "prompt 1");
  }
}

TEST(Umt5Encoder, CountsItsAttentionCallsAsText) {
  RandomParameters random(1, {});
  const Umt5Encoder encoder({.vocab_size = 9, .d_model = 8, .d_kv = 4, .num_layers = 3}, random);
  Attention attention;
  encoder.forward(at::zeros({1, 4}, at::kLong), {}, attention);
  ASSERT_EQ(attention.counts().size(), 1u);
  EXPECT_EQ(attention.counts().begin()->first.substr(0, 4), "text");
  EXPECT_EQ(attention.counts().begin()->second, 3);
}

struct BadKey {
  const char* key;
  Json value;
};

TEST(Umt5Config, RefusesUnsupportedValuesByName) {
  for (const BadKey& bad : std::vector<BadKey>{{"feed_forward_proj", "silly-gelu"},
                                               {"feed_forward_proj", "gated-gelu-x"},
                                               {"feed_forward_proj", "gated"},
                                               {"dense_act_fn", "prelu"},
                                               {"d_model", 0},
                                               {"d_model", "big"},
                                               {"num_heads", -1},
                                               {"head_dim", 1.5},
                                               {"num_layers", 1 << 20},
                                               {"vocab_size", -3},
                                               {"relative_attention_num_buckets", 3},
                                               {"relative_attention_max_distance", 8},
                                               {"is_decoder", true},
                                               {"is_gated_act", 3},
                                               {"model_type", "bert"},
                                               {"quantization_config", Json::object({{"bits", 4}})},
                                               {"layer_norm_epsilon", "x"}}) {
    Json json = Json::object();
    json[bad.key] = bad.value;
    Config config(json, "config.json");
    Report report;
    try {
      Umt5Config::read(config, report);
      ADD_FAILURE() << bad.key << " accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_data);
      EXPECT_NE(error.reason().find(bad.key), std::string::npos) << error.what();
    }
  }
}

TEST(Umt5Config, WarnsAboutUnknownKeysOnce) {
  Json json = Json::object();
  json["model_type"] = "t5";
  json["surprise"] = 1;
  Config config(json, "config.json");
  Report report;
  const Umt5Config sizes = Umt5Config::read(config, report);
  EXPECT_FALSE(sizes.bias_in_each_layer);
  EXPECT_FALSE(sizes.gated);
  EXPECT_EQ(sizes.activation, "relu");
  ASSERT_EQ(report.warnings().size(), 1u);
  EXPECT_NE(report.warnings()[0].find("surprise"), std::string::npos);
}

}  // namespace
}  // namespace fovea::models
