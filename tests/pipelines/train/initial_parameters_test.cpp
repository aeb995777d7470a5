#include "pipelines/train/initial_parameters.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "core/attention/attention.h"
#include "models/dit/wan/wan.h"
#include "models/text/umt5/umt5_encoder.h"
#include "models/vae/wan/autoencoder_wan.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using test::expect_error;

at::Tensor get(const std::string& name, std::vector<int64_t> shape, uint64_t seed = 1) {
  return InitialParameters(seed, {.d_model = 300, .d_kv = 16}).get(name, shape);
}

double deviation(const at::Tensor& x) { return x.square().mean().sqrt().item<double>(); }

// Root mean square within 5 %: the tensors below have 12,000 elements or more.
void expect_deviation(const std::string& name, std::vector<int64_t> shape, double expected) {
  const at::Tensor x = get(name, shape);
  EXPECT_NEAR(deviation(x) / expected, 1.0, 0.05) << name;
  EXPECT_LT(std::abs(x.mean().item<double>()), 0.05 * expected) << name;
}

TEST(InitialParameters, BiasesAreZeroAndNormsOne) {
  for (const char* name : {"proj_out.bias", "blocks.0.norm2.bias", "encoder.conv_in.bias",
                           "decoder.up_blocks.0.upsamplers.0.time_conv.bias"}) {
    EXPECT_EQ(get(name, {7}).abs().max().item<double>(), 0.0) << name;
  }
  for (const char* name :
       {"blocks.1.attn1.norm_q.weight", "blocks.0.norm2.weight", "encoder.final_layer_norm.weight",
        "encoder.block.0.layer.1.layer_norm.weight"}) {
    EXPECT_TRUE(get(name, {7}).eq(1).all().item<bool>()) << name;
  }
  EXPECT_TRUE(get("decoder.norm_out.gamma", {7, 1, 1, 1}).eq(1).all().item<bool>());
}

TEST(InitialParameters, TransformerIsGlorotsWithSmallEmbeddersAndNoOutput) {
  expect_deviation("blocks.0.attn1.to_q.weight", {200, 300}, std::sqrt(2.0 / 500));
  expect_deviation("blocks.3.ffn.net.0.proj.weight", {600, 100}, std::sqrt(2.0 / 700));
  expect_deviation("patch_embedding.weight", {200, 16, 1, 2, 2}, std::sqrt(2.0 / 264));
  const at::Tensor x = get("blocks.0.attn2.to_out.0.weight", {200, 300});
  EXPECT_LE(x.abs().max().item<double>(), std::sqrt(6.0 / 500));  // uniform
  for (const char* name : {"time_embedder.linear_1", "time_embedder.linear_2", "time_proj"}) {
    expect_deviation(str("condition_embedder.", name, ".weight"), {200, 300}, 0.02);
  }
  expect_deviation("blocks.0.scale_shift_table", {1, 6, 4000}, 1 / std::sqrt(4000.0));
  expect_deviation("scale_shift_table", {1, 2, 9000}, 1 / std::sqrt(9000.0));
  EXPECT_EQ(get("proj_out.weight", {64, 300}).abs().max().item<double>(), 0.0);
}

TEST(InitialParameters, TextEncoderIsT5s) {
  const std::string block = "encoder.block.0.layer.";
  expect_deviation("shared.weight", {100, 300}, 1.0);
  expect_deviation(block + "0.SelfAttention.q.weight", {64, 300}, 1 / std::sqrt(300.0 * 16));
  expect_deviation(block + "0.SelfAttention.k.weight", {64, 300}, 1 / std::sqrt(300.0));
  expect_deviation(block + "0.SelfAttention.v.weight", {64, 300}, 1 / std::sqrt(300.0));
  expect_deviation(block + "0.SelfAttention.o.weight", {300, 64}, 1 / std::sqrt(64.0));
  expect_deviation(block + "1.DenseReluDense.wi_1.weight", {500, 300}, 1 / std::sqrt(300.0));
  expect_deviation(block + "1.DenseReluDense.wo.weight", {300, 500}, 1 / std::sqrt(500.0));
}

// The word before and the one behind count for more than those far away, each in its own way.
TEST(InitialParameters, TextEncoderSeesTheOrderOfWords) {
  const models::Umt5Config text{
      .vocab_size = 40, .d_model = 64, .d_kv = 16, .d_ff = 96, .num_layers = 1, .num_heads = 4};
  InitialParameters source(7, text);
  const models::Umt5Encoder encoder(text, source);
  Attention attention;
  const auto hidden_of_the_tenth = [&](int64_t changed) {
    at::Tensor ids = at::arange(20).unsqueeze(0);
    if (changed >= 0) ids[0][changed] = 30;
    return encoder.forward(ids, {}, attention)[0][9].clone();
  };
  const at::Tensor before = hidden_of_the_tenth(-1);
  const auto effect = [&](int64_t changed) {
    return (hidden_of_the_tenth(changed) - before).norm().item<double>();
  };
  const double far = std::max(effect(0), effect(19));
  EXPECT_GT(effect(8), 3 * far);
  EXPECT_GT(effect(10), 3 * far);
}

TEST(InitialParameters, AutoencoderKeepsVarianceAndEndsBranchesSmall) {
  expect_deviation("encoder.conv_in.weight", {200, 3, 3, 3, 3}, 1 / std::sqrt(81.0));
  expect_deviation("decoder.mid_block.resnets.0.conv1.weight", {20, 30, 3, 3, 3},
                   1 / std::sqrt(810.0));
  expect_deviation("decoder.mid_block.resnets.0.conv2.weight", {20, 30, 3, 3, 3},
                   0.1 / std::sqrt(810.0));
  expect_deviation("encoder.mid_block.attentions.0.proj.weight", {120, 120, 1, 1},
                   0.1 / std::sqrt(120.0));
  expect_deviation("encoder.mid_block.attentions.0.to_qkv.weight", {360, 120, 1, 1},
                   1 / std::sqrt(120.0));
  expect_deviation("encoder.down_blocks.2.resample.1.weight", {40, 40, 3, 3}, 1 / std::sqrt(360.0));
  expect_deviation("decoder.conv_out.weight", {60, 20, 3, 3, 3}, 1 / std::sqrt(540.0));
  expect_deviation("quant_conv.weight", {120, 120, 1, 1, 1}, 1 / std::sqrt(120.0));
}

TEST(InitialParameters, TimeConvolutionsCopyTheLastTap) {
  const at::Tensor x = at::randn({2, 5, 3, 1, 1});
  const at::Tensor up = get("decoder.up_blocks.0.upsamplers.0.time_conv.weight", {10, 5, 3, 1, 1});
  const at::Tensor present = x.narrow(2, 2, 1);
  EXPECT_TRUE(at::conv3d(x, up).equal(at::cat({present, present}, 1)));
  const at::Tensor down = get("encoder.down_blocks.5.time_conv.weight", {5, 5, 3, 1, 1});
  EXPECT_TRUE(at::conv3d(x, down).equal(present));
}

TEST(InitialParameters, ValuesDependOnSeedNameAndShapeAlone) {
  InitialParameters one(3), other(3);
  const std::string a = "blocks.0.ffn.net.2.weight", b = "blocks.1.ffn.net.2.weight";
  const at::Tensor first_a = one.get(a, {8, 12});
  const at::Tensor first_b = one.get(b, {8, 12});
  const at::Tensor second_b = other.get(b, {8, 12});
  const at::Tensor second_a = other.get(a, {8, 12}, /*keep_fp32=*/true);
  EXPECT_TRUE(first_a.equal(second_a));
  EXPECT_TRUE(first_b.equal(second_b));
  EXPECT_FALSE(first_a.equal(first_b));
  EXPECT_FALSE(first_a.equal(InitialParameters(4).get(a, {8, 12})));
  EXPECT_FALSE(first_a.flatten().equal(one.get(a, {12, 8}).flatten()));
  first_a.zero_();  // the caller's own: training changes it
  EXPECT_TRUE(one.get(a, {8, 12}).equal(second_a));
}

TEST(InitialParameters, RefusesAVectorThatItDoesNotKnow) {
  expect_error(ErrorCode::usage, "blocks.0.temperature", [] { get("blocks.0.temperature", {1}); });
}

// Forwards to InitialParameters and counts names.
class Recorder : public ParameterSource {
 public:
  explicit Recorder(models::Umt5Config text) : source_(5, std::move(text)) {}
  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32) override {
    EXPECT_TRUE(names.insert(name).second) << name;
    const at::Tensor values = source_.get(name, shape, keep_fp32);
    EXPECT_EQ(values.sizes(), shape);
    EXPECT_EQ(values.scalar_type(), at::kFloat);
    return values;
  }
  bool has(const std::string& name) const override { return source_.has(name); }
  std::set<std::string> names;

 private:
  InitialParameters source_;
};

TEST(InitialParameters, StartsEveryNetwork) {
  const models::Umt5Config text{.vocab_size = 40,
                                .d_model = 16,
                                .d_kv = 4,
                                .d_ff = 24,
                                .num_layers = 2,
                                .num_heads = 4,
                                .num_buckets = 8,
                                .max_distance = 20};
  Recorder source(text);
  Attention attention;
  const models::Umt5Encoder encoder(text, source);
  EXPECT_TRUE(source.names.contains("shared.weight"));
  const at::Tensor hidden = encoder.forward(at::arange(6).unsqueeze(0), {}, attention);
  EXPECT_NEAR(deviation(hidden), 1.0, 0.2);

  source.names.clear();
  models::WanConfig config{.num_attention_heads = 2,
                           .attention_head_dim = 12,
                           .text_dim = 16,
                           .freq_dim = 32,
                           .ffn_dim = 48,
                           .num_layers = 2,
                           .image_dim = 20,
                           .added_kv_proj_dim = 24,
                           .pos_embed_seq_len = 8};
  models::WanTransformer(config, source);
  config.image_dim = config.added_kv_proj_dim = config.pos_embed_seq_len = {};
  source.names.clear();
  models::WanTransformer transformer(config, source);
  const at::Tensor velocity = transformer.forward({.latents = at::randn({1, 16, 2, 4, 4}),
                                                   .timestep = at::full({1}, 500, at::kLong),
                                                   .text = hidden,
                                                   .image = {}},
                                                  {}, attention);
  EXPECT_EQ(velocity.abs().max().item<double>(), 0.0);

  source.names.clear();
  const models::WanVaeConfig small{
      .base_dim = 8, .decoder_base_dim = 8, .dim_mult = {1, 2, 2, 2}, .num_res_blocks = 1};
  const models::AutoencoderWan vae(small, source);
  Attention vae_attention;
  const at::Tensor video = at::rand({1, 3, 5, 32, 32}) * 2 - 1;
  const models::LatentDistribution latents = vae.encode(video, vae_attention);
  const double spread = deviation(latents.mean);
  EXPECT_GT(spread, 0.1);
  EXPECT_LT(spread, 3.0);
  const at::Tensor decoded = vae.decode(latents.mean, vae_attention);
  EXPECT_GT(deviation(decoded), 0.1);
}

}  // namespace
}  // namespace fovea::pipelines
