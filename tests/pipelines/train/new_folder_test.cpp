// A folder made from nothing, as training makes one, in Python diffusers and in `fovea generate`.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cstdlib>

#include "models/text/tokenizer/word_tokenizer.h"
#include "models/text/umt5/umt5_encoder.h"
#include "models/vae/wan/autoencoder_wan.h"
#include "pipelines/train/initial_parameters.h"
#include "pipelines/train/model_writer.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

// Initial parameters, moved a little, as training would move them: none stays 0. Keeps them.
class Moved : public ParameterSource {
 public:
  explicit Moved(const models::Umt5Config& text) : source_(11, text) {}

  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32) override {
    const at::Tensor noise = at::randn(shape, generator_, at::TensorOptions(at::kFloat));
    tensors[name] = (source_.get(name, shape, keep_fp32) + 0.2 * noise).to(at::kBFloat16);
    return tensors[name];
  }
  bool has(const std::string& name) const override { return source_.has(name); }

  TensorMap tensors;

 private:
  InitialParameters source_;
  at::Generator generator_ = at::detail::createCPUGenerator(12);
};

FolderPlan plan_folder() {
  FolderPlan plan;
  plan.words = {"a",    "red",   "blue",   "sphere", "cube", "rolls",
                "left", "spins", "static", "camera", ",",    "."};
  plan.text_encoder = {.vocab_size = models::word_vocab_size(plan.words),
                       .d_model = 24,
                       .d_kv = 6,
                       .d_ff = 40,
                       .num_layers = 2,
                       .num_heads = 4};
  plan.transformer = {.num_attention_heads = 2,
                      .attention_head_dim = 12,
                      .text_dim = 24,
                      .freq_dim = 32,
                      .ffn_dim = 72,
                      .num_layers = 2,
                      .rope_max_seq_len = 64};
  plan.autoencoder = {
      .base_dim = 4, .decoder_base_dim = 4, .dim_mult = {1, 2, 2, 2}, .num_res_blocks = 1};
  for (int64_t i = 0; i < plan.autoencoder.z_dim; ++i) {
    plan.autoencoder.latents_mean.push_back(0.1 * static_cast<double>(i) - 0.7);
    plan.autoencoder.latents_std.push_back(1.0 + 0.1 * static_cast<double>(i));
  }
  return plan;
}

template <typename Network, typename Config>
void save(const fs::path& folder, const std::string& stem, const Config& config,
          const FolderPlan& plan) {
  constexpr uint64_t kShardBytes = 16 << 10;
  Moved source(plan.text_encoder);
  const Network network(config, source);
  save_sharded(folder, stem, source.tensors, kShardBytes);
}

TEST(NewFolder, EqualsDiffusers) {
  const test::TemporaryFolder folder;
  const FolderPlan plan = plan_folder();
  write_folder_skeleton(folder.path, plan);
  const std::string stem = "diffusion_pytorch_model";
  save<models::Umt5Encoder>(folder.path / "text_encoder", "model", plan.text_encoder, plan);
  save<models::WanTransformer>(folder.path / "transformer", stem, plan.transformer, plan);
  save<models::AutoencoderWan>(folder.path / "vae", stem, plan.autoencoder, plan);
  const fs::path script =
      fs::path(std::getenv("FOVEA_SOURCE_DIR")) / "tests/pipelines/train/new_folder_check.py";
  const std::string command = fovea::str("'", std::getenv("FOVEA_PYTHON"), "' '", script.string(),
                                         "' '", folder.path.string(), "'");
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

}  // namespace
}  // namespace fovea::pipelines
