#pragma once

#include <csignal>
#include <memory>
#include <string>

#include <ATen/ATen.h>

#include "core/interrupt.h"
#include "core/json.h"
#include "core/process_group.h"
#include "pipelines/train/trainer.h"

namespace fovea::pipelines::test {

/// A configuration that trains on a CPU in milliseconds a step: 5 frames of 16 x 16 pixels, an
/// autoencoder of ratio 4 x 4 x 4 and a transformer of two blocks.
inline Json tiny_config(const std::string& stage) {
  return {
      {"stage", stage},
      {"steps", 6},
      {"seed", 3},
      {"log_every", 1},
      {"checkpoint_every", 1000},
      {"text_length", 24},
      {"evaluation", {{"clips", 2}}},
      {"data",
       {{"samples", 1},
        {"scenes", {{"max_objects", 1}}},
        {"buckets", {{{"frames", 5}, {"height", 16}, {"width", 16}, {"batch", 4}, {"depth", 2}}}}}},
      {"optimizer", {{"learning_rate", 2e-3}, {"ema", 0.5}, {"weight_decay", 0.01}}},
      {"model",
       {{"vae",
         {{"base_dim", 8},
          {"dim_mult", {1, 1, 1}},
          {"num_res_blocks", 1},
          {"z_dim", 4},
          {"temperal_downsample", {true, true}},
          {"latents_mean", {0, 0, 0, 0}},
          {"latents_std", {1, 1, 1, 1}},
          {"scale_factor_spatial", 4}}},
        {"transformer",
         {{"patch_size", {1, 1, 1}},
          {"num_attention_heads", 2},
          {"attention_head_dim", 12},
          {"in_channels", 4},
          {"out_channels", 4},
          {"text_dim", 16},
          {"freq_dim", 32},
          {"ffn_dim", 48},
          {"num_layers", 2}}},
        {"text_encoder",
         {{"d_model", 16}, {"d_kv", 8}, {"d_ff", 32}, {"num_layers", 1}, {"num_heads", 2}}},
        {"scheduler", {{"flow_shift", 3.0}}}}}};
}

/// Silent progress that asks the run to stop once `step` steps are done.
class InterruptAt : public Progress {
 public:
  explicit InterruptAt(int64_t step) : step_(step) {}
  ~InterruptAt() override { request_interrupt(0); }
  void begin(const std::string&, int64_t) override {}
  void update(int64_t done) override {
    if (done == step_) request_interrupt(SIGINT);
  }
  void end() override {}
  void event(const std::string&, const Json&) override {}
  Json seconds() const override { return {}; }

 private:
  int64_t step_;
};

/// One trainer with what it needs, in a folder.
struct TinyRun {
  TinyRun(const fs::path& out, const Json& config, bool resume = false,
          std::unique_ptr<Progress> shown = make_progress(ProgressStyle::silent),
          at::ScalarType dtype = at::kFloat)
      : progress(std::move(shown)),
        trainer({.config = TrainConfig::parse(config, "tiny.json"),
                 .out = out,
                 .dtype = dtype,
                 .resume = resume},
                *group, *progress, report) {}

  at::Tensor weights() { return trainer.parameters().master().clone(); }

  std::unique_ptr<ProcessGroup> group = ProcessGroup::make({}, at::kCPU);
  std::unique_ptr<Progress> progress;
  Report report;
  Trainer trainer;
};

}  // namespace fovea::pipelines::test
