#include "models/vae/wan/vae_config.h"

#include <gtest/gtest.h>

#include "core/check.h"

namespace fovea::models {
namespace {

WanVaeConfig read(const char* text) {
  Config config(parse_json(text, "config.json"), "config.json");
  WanVaeConfig result = WanVaeConfig::read(config);
  Report report(/*strict=*/true);
  config.finish(report);
  return result;
}

// The error's text, or "" where the config is read.
std::string refusal(const char* text) {
  try {
    read(text);
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    return error.what();
  }
  return "";
}

TEST(WanVaeConfig, AnEmptyObjectIsWan21) {
  const WanVaeConfig config = read("{}");
  EXPECT_EQ(config.base_dim, 96);
  EXPECT_EQ(config.decoder_base_dim, 96);
  EXPECT_EQ(config.z_dim, 16);
  EXPECT_EQ(config.dim_mult, (std::vector<int64_t>{1, 2, 4, 4}));
  EXPECT_EQ(config.num_res_blocks, 2);
  EXPECT_EQ(config.temperal_downsample, (std::vector<bool>{false, true, true}));
  EXPECT_EQ(config.latents_mean.size(), 16u);
  EXPECT_EQ(config.latents_std.size(), 16u);
  EXPECT_EQ(config.spatial_ratio(), 8);
  EXPECT_EQ(config.scale_factor_temporal, 4);
}

TEST(WanVaeConfig, ReadsEveryKey) {
  const WanVaeConfig config = read(R"({
      "_class_name": "AutoencoderKLWan", "_diffusers_version": "0.42.1", "base_dim": 5,
      "decoder_base_dim": 6, "z_dim": 3, "dim_mult": [1, 3], "num_res_blocks": 4,
      "attn_scales": [0.3], "temperal_downsample": [true], "dropout": 0.1,
      "latents_mean": [1, 2, 3], "latents_std": [4, 5, 6.5], "is_residual": false,
      "in_channels": 4, "out_channels": 7, "patch_size": null, "scale_factor_temporal": 2,
      "scale_factor_spatial": 2})");
  EXPECT_EQ(config.encoder_dim(1), 15);
  EXPECT_EQ(config.decoder_dim(0), 18);
  EXPECT_EQ(config.decoder_dim(1), 6);
  EXPECT_EQ(config.z_dim, 3);
  EXPECT_EQ(config.num_res_blocks, 4);
  EXPECT_TRUE(config.temperal_upsample(0));
  EXPECT_EQ(config.dropout, 0.1);
  EXPECT_EQ(config.latents_mean, (std::vector<double>{1, 2, 3}));
  EXPECT_EQ(config.latents_std, (std::vector<double>{4, 5, 6.5}));
  EXPECT_EQ(config.in_channels, 4);
  EXPECT_EQ(config.out_channels, 7);
  EXPECT_EQ(config.scale_factor_temporal, 2);
  EXPECT_EQ(config.scale_factor_spatial, 2);
}

TEST(WanVaeConfig, TheDecoderTakesTheBaseOfTheEncoderUnlessTold) {
  EXPECT_EQ(read(R"({"base_dim": 20})").decoder_base_dim, 20);
  EXPECT_EQ(read(R"({"base_dim": 20, "decoder_base_dim": null})").decoder_base_dim, 20);
}

TEST(WanVaeConfig, RefusesByKey) {
  const std::pair<const char*, const char*> cases[] = {
      {"_class_name", R"({"_class_name": "AutoencoderKL"})"},
      {"is_residual", R"({"is_residual": true})"},
      {"is_residual", R"({"is_residual": "no"})"},
      {"patch_size", R"({"patch_size": 2})"},
      {"attn_scales", R"({"attn_scales": [0.25]})"},
      {"base_dim", R"({"base_dim": 0})"},
      {"base_dim", R"({"base_dim": 100000000000})"},
      {"base_dim", R"({"base_dim": 1.5})"},
      {"decoder_base_dim", R"({"decoder_base_dim": -1})"},
      {"z_dim", R"({"z_dim": 0})"},
      {"dim_mult", R"({"dim_mult": []})"},
      {"dim_mult", R"({"dim_mult": [1, 0]})"},
      {"dim_mult", R"({"dim_mult": "1,2"})"},
      {"dim_mult", R"({"dim_mult": [1,1,1,1,1,1,1,1,1,1,1,1]})"},
      {"dim_mult", R"({"decoder_base_dim": 1, "dim_mult": [1, 1]})"},
      {"num_res_blocks", R"({"num_res_blocks": 0})"},
      {"temperal_downsample", R"({"temperal_downsample": [true]})"},
      {"temperal_downsample", R"({"temperal_downsample": [true, true, true]})"},
      {"temperal_downsample", R"({"temperal_downsample": [1, 2, 3]})"},
      {"dropout", R"({"dropout": 2})"},
      {"latents_std", R"({"latents_std": [1, 0]})"},
      {"latents_mean", R"({"latents_mean": [null]})"},
      {"in_channels", R"({"in_channels": 0})"},
      {"out_channels", R"({"out_channels": 0})"},
      {"scale_factor_temporal", R"({"scale_factor_temporal": 0})"},
      {"scale_factor_spatial", R"({"scale_factor_spatial": "8"})"},
      {"clip_output", R"({"clip_output": false})"},  // no key of diffusers 0.42.1
  };
  for (const auto& [key, text] : cases) {
    EXPECT_NE(refusal(text).find(str("'", key, "'")), std::string::npos)
        << text << " gave: " << refusal(text);
  }
}

}  // namespace
}  // namespace fovea::models
