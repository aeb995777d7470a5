#include <cmath>
#include <cstdlib>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <gtest/gtest.h>

#include "core/safetensors.h"
#include "models/dit/wan/wan.h"
#include "models/vae/wan/autoencoder_wan.h"
#include "pipelines/train/clip_source.h"

// The model that ships with the tree, as training left it.

namespace fovea::pipelines {
namespace {

fs::path source_dir() { return std::getenv("FOVEA_SOURCE_DIR"); }
fs::path mini() { return source_dir() / "assets" / "models" / "mini"; }

// Mean PSNR of 8-bit pixels over `clips` clips that training never saw.
double mean_psnr(int64_t side, int64_t frames, int64_t clips) {
  const c10::InferenceMode inference;
  const TrainConfig config =
      TrainConfig::read(source_dir() / "assets" / "training" / "mini-autoencoder.json");
  const TaskSetup setup;
  const ClipSource source(config, setup);
  Config keys = Config::read(mini() / "vae" / "config.json");
  WeightFiles files(mini() / "vae", "diffusion_pytorch_model", {});
  const models::AutoencoderWan vae(models::WanVaeConfig::read(keys), files);
  Report report(/*strict=*/true);
  files.finish(report);
  Attention attention;
  const ClipBucket bucket{.frames = frames, .height = side, .width = side};
  double sum = 0;
  for (int64_t i = 0; i < clips; ++i) {
    const at::Tensor rows = source.render_unseen(bucket, i, 1).rows;
    const at::Tensor video = pixels_to_network(rows, at::kFloat);
    const at::Tensor decoded = vae.decode(vae.encode(video, attention).mode(), attention);
    const at::Tensor pixels = decoded.add(1).mul(127.5).round().clamp(0, 255);
    const double error = (pixels - rows.permute({0, 4, 1, 2, 3})).square().mean().item<double>();
    sum += 10 * std::log10(255.0 * 255.0 / error);
  }
  return sum / static_cast<double>(clips);
}

// How many clips: FOVEA_MINI_CLIPS=64 takes as many as training does at its end, which needs half
// an hour here.
int64_t clip_count(int64_t usual) {
  const char* text = std::getenv("FOVEA_MINI_CLIPS");
  return text == nullptr ? usual : std::stoll(text);
}

TEST(MiniModel, AutoencoderKeepsUnseenClipsOf128Pixels) {
  const double psnr = mean_psnr(128, 17, clip_count(12));
  RecordProperty("psnr", std::to_string(psnr));
  EXPECT_GE(psnr, 36);
}

TEST(MiniModel, AutoencoderKeepsUnseenClipsOf256Pixels) {
  const double psnr = mean_psnr(256, 17, clip_count(4));
  RecordProperty("psnr", std::to_string(psnr));
  EXPECT_GE(psnr, 37);
}

TEST(MiniModel, HasTheSizesThatItIsShippedFor) {
  int64_t parameters = 0;
  for (const fs::directory_entry& file : fs::directory_iterator(mini() / "transformer")) {
    if (file.path().extension() != ".safetensors") continue;
    EXPECT_LE(file.file_size(), 15'000'000u) << file.path();
    const SafetensorsFile weights(file.path());
    for (const StoredTensor& tensor : weights.tensors()) {
      EXPECT_EQ(tensor.type, StoredType::bf16) << tensor.name;
      parameters += tensor.numel();
    }
  }
  EXPECT_GE(parameters, 11'000'000);
  EXPECT_LE(parameters, 15'000'000);
  Config config = Config::read(mini() / "transformer" / "config.json");
  const models::WanConfig sizes = models::WanConfig::read(config);
  EXPECT_EQ(sizes.attention_head_dim, 128);
  EXPECT_GE(sizes.num_attention_heads * sizes.num_layers, 18);
  EXPECT_TRUE(fs::is_regular_file(mini() / "tokenizer" / "tokenizer.json"));
  EXPECT_TRUE(fs::is_regular_file(mini() / "tokenizer" / "spiece.model"));
  uintmax_t bytes = 0;
  for (const fs::directory_entry& file :
       fs::recursive_directory_iterator(source_dir() / "assets")) {
    if (file.is_regular_file()) bytes += file.file_size();
  }
  EXPECT_LE(bytes, 44'000'000u);
}

}  // namespace
}  // namespace fovea::pipelines
