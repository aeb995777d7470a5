#include "pipelines/train/optimizer.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

// One matrix (which decays) and one vector, random.
struct Rig {
  explicit Rig(const OptimizerOptions& options, at::ScalarType dtype = at::kDouble)
      : initial(7, {dtype == at::kDouble ? at::kDouble : at::kFloat}), parameters({dtype}) {
    ParameterSource& source = parameters.component("net", initial);
    matrix = source.get("matrix", {3, 2});
    vector = source.get("vector", {4});
    parameters.finish();
    optimizer = std::make_unique<Optimizer>(parameters, options);
  }

  RandomParameters initial;
  TrainableParameters parameters;
  at::Tensor matrix, vector;
  std::unique_ptr<Optimizer> optimizer;
};

at::Tensor scalar(double value) { return at::scalar_tensor(value, at::TensorOptions(at::kFloat)); }

// Gradients of step `step`, the same for rig and reference; large now and then, so that they clip.
at::Tensor gradients(int64_t step, int64_t count) {
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(std::sin(static_cast<double>(3 * step + 7 * i)) * (step % 5 == 0 ? 3 : 0.1));
  }
  return at::tensor(values, at::kDouble);
}

// The algorithm written out for one number after another.
struct Reference {
  OptimizerOptions options;
  std::vector<double> weight, moment1, moment2, average;
  std::vector<bool> decays;

  void step(int64_t step, double rate, const at::Tensor& gradient) {
    double square = 0;
    for (size_t i = 0; i < weight.size(); ++i) square += std::pow(gradient[i].item<double>(), 2);
    // The norm that clips is known to fp32 only, as the optimizer has it.
    const float norm = static_cast<float>(std::sqrt(square));
    const double clip = std::min(1.0f, static_cast<float>(options.clip_norm) / (norm + 1e-6f));
    const double n = static_cast<double>(step + 1);
    for (size_t i = 0; i < weight.size(); ++i) {
      const double g = gradient[i].item<double>() * clip;
      if (decays[i]) weight[i] -= rate * options.weight_decay * weight[i];
      moment1[i] = options.beta1 * moment1[i] + (1 - options.beta1) * g;
      moment2[i] = options.beta2 * moment2[i] + (1 - options.beta2) * g * g;
      const double m = moment1[i] / (1 - std::pow(options.beta1, n));
      const double v = moment2[i] / (1 - std::pow(options.beta2, n));
      weight[i] -= rate * m / (std::sqrt(v) + options.eps);
      const double share = options.ema_share(step);
      average[i] = share * average[i] + (1 - share) * weight[i];
    }
  }
};

TEST(OptimizerTest, EqualsAScalarImplementationAfter100Steps) {
  OptimizerOptions options{.learning_rate = 0.01, .warmup_steps = 10, .weight_decay = 0.1};
  options.clip_norm = 0.5;
  options.ema = 0.9;
  Rig rig(options);
  Reference reference{options};
  for (int64_t i = 0; i < rig.parameters.numel(); ++i) {
    reference.weight.push_back(rig.parameters.master()[i].item<double>());
  }
  reference.average = reference.weight;
  reference.moment1 = reference.moment2 = std::vector<double>(reference.weight.size(), 0.0);
  for (const auto& range : rig.parameters.ranges()) {
    for (int64_t i = range.begin; i < range.end; ++i) reference.decays.push_back(range.decays);
  }
  ASSERT_EQ(std::count(reference.decays.begin(), reference.decays.end(), true), 6);
  for (int64_t step = 0; step < 100; ++step) {
    const at::Tensor gradient = gradients(step, rig.parameters.numel());
    rig.parameters.gradient().copy_(gradient);
    const double rate = options.rate(step, 100);
    rig.optimizer->step(step, rate, scalar(1));
    reference.step(step, rate, gradient);
  }
  for (int64_t i = 0; i < rig.parameters.numel(); ++i) {
    const auto k = static_cast<size_t>(i);
    EXPECT_NEAR(rig.parameters.master()[i].item<double>(), reference.weight[k], 1e-7) << i;
    EXPECT_NEAR(rig.optimizer->average()[i].item<double>(), reference.average[k], 1e-7) << i;
  }
}

TEST(OptimizerTest, SkipsWhatIsNotFinite) {
  for (const bool bad_loss : {false, true}) {
    Rig rig({});
    rig.parameters.gradient().fill_(0.1);
    rig.optimizer->step(0, 0.01, scalar(1));
    const at::Tensor weights = rig.parameters.master().clone();
    const at::Tensor average = rig.optimizer->average().clone();
    rig.parameters.gradient().fill_(0.1);
    if (!bad_loss) rig.parameters.gradient()[3] = std::nan("");
    const at::Tensor outcome = rig.optimizer->step(1, 0.01, scalar(bad_loss ? std::nan("") : 1.0));
    EXPECT_EQ(outcome[1].item<float>(), 1);
    EXPECT_TRUE(at::equal(rig.parameters.master(), weights));
    EXPECT_TRUE(at::equal(rig.optimizer->average(), average));
    // And it goes on as if that step had not been.
    rig.parameters.gradient().fill_(0.1);
    EXPECT_EQ(rig.optimizer->step(2, 0.01, scalar(1))[1].item<float>(), 0);
    EXPECT_TRUE(at::isfinite(rig.parameters.master()).all().item<bool>());
    EXPECT_EQ(rig.optimizer->state().at("adam_steps").item<float>(), 2);
  }
}

TEST(OptimizerTest, HalfParametersFollowTheirMasterWeights) {
  Rig rig({}, at::kBFloat16);
  EXPECT_EQ(rig.matrix.scalar_type(), at::kBFloat16);
  EXPECT_EQ(rig.parameters.master().scalar_type(), at::kFloat);
  const at::Tensor first = rig.parameters.split(rig.parameters.master()).at("net/matrix").clone();
  rig.parameters.clear_gradients();
  (rig.matrix * rig.matrix).sum().backward();
  rig.parameters.collect_gradients();
  const at::Tensor gradient = rig.parameters.split(rig.parameters.gradient()).at("net/matrix");
  EXPECT_TRUE(at::allclose(gradient, 2 * first, 1e-2, 1e-3));
  // Steps far below bf16's resolution add up in the master weights.
  for (int64_t step = 0; step < 3; ++step) rig.optimizer->step(step, 1e-6, scalar(1));
  const at::Tensor master = rig.parameters.split(rig.parameters.master()).at("net/matrix");
  EXPECT_NEAR((first - master).abs().max().item<double>(), 3e-6, 5e-7);
  EXPECT_TRUE(at::equal(rig.matrix.detach(), master.to(at::kBFloat16)));
}

TEST(OptimizerTest, StateComesBackAndFits) {
  Rig a({}), b({});
  a.parameters.gradient().fill_(0.3);
  a.optimizer->step(0, 0.1, scalar(1));
  TensorMap state = a.optimizer->state();
  b.optimizer->restore(state, "state");
  for (Rig* rig : {&a, &b}) {
    rig->parameters.gradient().fill_(-0.2);
    rig->optimizer->step(1, 0.1, scalar(1));
  }
  EXPECT_TRUE(at::equal(a.parameters.master(), b.parameters.master()));
  EXPECT_TRUE(at::equal(a.optimizer->average(), b.optimizer->average()));
  state.erase("moment1/net/vector");
  try {
    b.optimizer->restore(state, "state");
    ADD_FAILURE() << "restored";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    EXPECT_THAT(error.what(), testing::HasSubstr("net/vector"));
  }
}

TEST(OptimizerTest, RatesRiseAndFallAsAsked) {
  OptimizerOptions options{.learning_rate = 2, .warmup_steps = 4, .final_ratio = 0.1};
  EXPECT_DOUBLE_EQ(options.rate(0, 104), 0.5);
  EXPECT_DOUBLE_EQ(options.rate(3, 104), 2);
  EXPECT_DOUBLE_EQ(options.rate(54, 104), 1.1);
  EXPECT_NEAR(options.rate(103, 104), 0.2, 1e-3);
  options.schedule = "linear";
  EXPECT_DOUBLE_EQ(options.rate(54, 104), 1.1);
  options.schedule = "constant";
  EXPECT_DOUBLE_EQ(options.rate(100, 104), 2);
}

TEST(OptimizerTest, SwappingTheAverageTwiceIsNothing) {
  Rig rig({});
  rig.parameters.gradient().fill_(0.3);
  rig.optimizer->step(0, 0.1, scalar(1));
  const at::Tensor master = rig.parameters.master().clone(), average = rig.optimizer->average();
  const at::Tensor expected = average.clone();
  rig.optimizer->swap_average();
  EXPECT_TRUE(at::equal(rig.parameters.master(), expected));
  EXPECT_TRUE(at::equal(rig.matrix.detach().flatten().to(at::kDouble), expected.narrow(0, 0, 6)));
  rig.optimizer->swap_average();
  EXPECT_TRUE(at::equal(rig.parameters.master(), master));
}

}  // namespace
}  // namespace fovea::pipelines
