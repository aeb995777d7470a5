#include "pipelines/train/training_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "models/common/layers.h"
#include "models/dit/wan/wan.h"
#include "pipelines/train/initial_parameters.h"
#include "pipelines/train/transformer_task.h"
#include "tests/pipelines/train/training_rig.h"
#include "tests/support/files.h"

namespace fovea::pipelines {
namespace {

using test::tiny_config;
using test::TinyRun;

class TrainingTaskTest : public testing::TestWithParam<const char*> {
 protected:
  TrainConfig parse(const Json& json) { return TrainConfig::parse(json, "tiny.json"); }

  // The folder has an autoencoder, which the transformer's stage needs.
  TaskSetup setup() {
    Json config = tiny_config("autoencoder");
    config["steps"] = 1;
    TinyRun(folder_.path, config).trainer.run();
    return {.out = folder_.path, .dtype = at::kDouble};
  }

  fovea::test::TemporaryFolder folder_;
  Report report_;
};

double loss_at(TrainingTask& task, const at::Tensor& weights) {
  const c10::NoGradGuard no_grad;
  task.parameters().master().copy_(weights);
  task.parameters().publish();
  return task.loss(0, 1).item<double>();
}

// G5 of the numeric rules: central differences in fp64 along random directions.
TEST_P(TrainingTaskTest, GradientsEqualDifferencesOfTheLoss) {
  Json json = tiny_config(GetParam());
  json["loss"] = {{"l1", 0}, {"mse", 1}, {"gradient", 0}, {"kl", 0.01}};  // without kinks
  const TrainConfig config = parse(json);
  const std::unique_ptr<TrainingTask> task = make_training_task(config, setup(), report_);
  at::Tensor& master = task->parameters().master();
  ASSERT_EQ(master.scalar_type(), at::kDouble);
  at::Generator generator = at::detail::createCPUGenerator(5);
  // Away from the starting values, some of which are exactly 0.
  const at::Tensor weights = master + 0.05 * at::randn(master.sizes(), generator, master.options());
  master.copy_(weights);
  task->prepare(0);
  task->parameters().clear_gradients();
  task->loss(0, 1).backward();
  const at::Tensor gradient = task->parameters().gradient().clone();
  double worst = 0;
  for (int i = 0; i < 20; ++i) {
    const at::Tensor direction = at::randn(master.sizes(), generator, master.options());
    constexpr double step = 1e-7;
    const double difference =
        (loss_at(*task, weights + step * direction) - loss_at(*task, weights - step * direction)) /
        (2 * step);
    const double expected = (gradient * direction).sum().item<double>();
    // Relative to what a direction of this length gives on average: one may be near 0 by chance.
    const double scale = std::max(std::abs(expected), gradient.norm().item<double>());
    worst = std::max(worst, std::abs(difference - expected) / scale);
  }
  RecordProperty("worst_relative_error", std::to_string(worst));
  EXPECT_LE(worst, 1e-6);
}

TEST_P(TrainingTaskTest, ASavedModelHasTheParametersInBf16) {
  const TrainConfig config = parse(tiny_config(GetParam()));
  const std::unique_ptr<TrainingTask> task = make_training_task(config, setup(), report_);
  task->save();
  const bool autoencoder = std::string(GetParam()) == "autoencoder";
  const TensorMap saved = load_tensors(folder_.path / (autoencoder ? "vae" : "transformer") /
                                       "diffusion_pytorch_model.safetensors");
  const TensorMap trained =
      task->parameters().split(task->parameters().master(), autoencoder ? "vae" : "transformer");
  ASSERT_EQ(saved.size(), trained.size());
  for (const auto& [name, tensor] : trained) {
    EXPECT_TRUE(at::equal(saved.at(name), tensor.to(at::kBFloat16))) << name;
  }
}

INSTANTIATE_TEST_SUITE_P(Stages, TrainingTaskTest, testing::Values("autoencoder", "transformer"),
                         [](const auto& info) { return std::string(info.param); });

TEST(NoiseLevelTest, IsShiftedTowardsNoise) {
  EXPECT_DOUBLE_EQ(shifted_noise_level(0, 1), 0.5);
  EXPECT_DOUBLE_EQ(shifted_noise_level(0, 3), 0.75);
  EXPECT_NEAR(shifted_noise_level(2, 5), 5 * 0.8807970779778823 / (1 + 4 * 0.8807970779778823),
              1e-15);
  EXPECT_GT(shifted_noise_level(-6, 3), 0);
  EXPECT_LT(shifted_noise_level(6, 3), 1);
}

// G6 of the numeric rules: eight samples of fixed noise are learnt by heart.
TEST(OverfitTest, ATinyTransformerLearnsEightSamples) {
  models::WanConfig config{.patch_size = {1, 1, 1},
                           .num_attention_heads = 2,
                           .attention_head_dim = 24,
                           .in_channels = 4,
                           .out_channels = 4,
                           .text_dim = 16,
                           .freq_dim = 32,
                           .ffn_dim = 96,
                           .num_layers = 2};
  for (uint64_t seed = 0; seed < 5; ++seed) {
    InitialParameters initial(seed);
    TrainableParameters parameters({});
    models::WanTransformer transformer(config, parameters.component("transformer", initial));
    parameters.finish();
    Optimizer optimizer(parameters, {.learning_rate = 4e-3, .warmup_steps = 10});
    at::Generator generator = at::detail::createCPUGenerator(seed);
    const auto draw = [&](at::IntArrayRef shape) {
      return at::randn(shape, generator, at::TensorOptions(at::kFloat));
    };
    models::WanInputs inputs{
        draw({8, 4, 2, 3, 3}), 1000 * at::rand({8}, generator), draw({8, 5, 16}), {}};
    const at::Tensor target = draw({8, 4, 2, 3, 3});
    Attention attention;
    double loss = 1;
    constexpr int64_t kSteps = 300;
    for (int64_t step = 0; step < kSteps && loss > 1e-3; ++step) {
      parameters.clear_gradients();
      const at::Tensor value = at::mse_loss(transformer.forward(inputs, {}, attention), target);
      value.backward();
      optimizer.step(step,
                     OptimizerOptions{.learning_rate = 4e-3, .warmup_steps = 10}.rate(step, kSteps),
                     value.detach());
      loss = value.item<double>();
    }
    EXPECT_LE(loss, 1e-3) << "seed " << seed;
  }
}

}  // namespace
}  // namespace fovea::pipelines
