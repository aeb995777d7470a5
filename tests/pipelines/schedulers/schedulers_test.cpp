#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/json.h"
#include "pipelines/schedulers/scheduler.h"
#include "tests/support/golden.h"

namespace fovea::pipelines {
namespace {

std::unique_ptr<Scheduler> make(const Json& json, const SchedulerChoice& choice = {},
                                bool strict = true) {
  Report report(strict);
  return make_scheduler(Config(json, "scheduler_config.json"), choice, report);
}

Json unipc(Json changes = Json::object()) {
  Json json{{"_class_name", "UniPCMultistepScheduler"},
            {"prediction_type", "flow_prediction"},
            {"use_flow_sigmas", true},
            {"flow_shift", 3.0}};
  json.update(changes);
  return json;
}

Json euler(Json changes = Json::object()) {
  Json json{{"_class_name", "FlowMatchEulerDiscreteScheduler"}, {"shift", 3.0}};
  json.update(changes);
  return json;
}

/// The message of the Error that `action` throws; empty when it throws none.
template <typename Action>
std::string error_of(const Action& action, ErrorCode code) {
  try {
    action();
  } catch (const Error& error) {
    EXPECT_EQ(error.exit_code(), static_cast<int>(code)) << error.what();
    return error.what();
  }
  return "";
}

TEST(Schedulers, EqualTheReference) {
  const Json cases = read_json(test::golden("schedulers") / "cases.json")["cases"];
  const TensorMap tensors = load_tensors(test::golden("schedulers") / "schedulers.safetensors");
  ASSERT_GT(cases.size(), 200u);
  double worst = 0;
  int64_t identical = 0;
  for (const Json& one : cases) {
    const std::string name = one["name"];
    SCOPED_TRACE(one.dump());
    const auto scheduler = make(one["config"]);
    scheduler->set_timesteps(one["steps"]);
    EXPECT_TRUE(at::equal(scheduler->sigmas(), tensors.at(name + ".sigmas")));
    const at::Tensor& timesteps = tensors.at(name + ".timesteps");
    EXPECT_EQ(scheduler->timesteps().scalar_type(), timesteps.scalar_type());
    ASSERT_TRUE(at::equal(scheduler->timesteps(), timesteps));
    ASSERT_EQ(scheduler->num_steps(), timesteps.size(0));

    at::Tensor sample = tensors.at(name + ".initial");
    for (int64_t i = 0; i < scheduler->num_steps(); ++i) {
      EXPECT_EQ(scheduler->timestep_values()[i], timesteps[i].item<double>());
      const at::Tensor expected = tensors.at(name + ".samples")[i];
      sample = scheduler->step(tensors.at(name + ".outputs")[i], i, sample);
      ASSERT_EQ(sample.scalar_type(), expected.scalar_type());
      const double error = test::relative_error(sample, expected);
      ASSERT_LE(error, 1e-6) << "step " << i;
      worst = std::max(worst, error);
      identical += at::equal(sample, expected);
    }
  }
  RecordProperty("worst_relative_error", std::to_string(worst));
  std::printf("worst relative error %.2e, %ld steps bit-identical\n", worst,
              static_cast<long>(identical));
}

TEST(Schedulers, AnotherClassTakesOverWhatFromConfigDoes) {
  const Json saved = read_json(test::golden("schedulers") / "cases.json")["saved"];
  const TensorMap tensors = load_tensors(test::golden("schedulers") / "converted.safetensors");
  const auto plain = make(saved, {.name = "euler"});
  plain->set_timesteps(7);
  EXPECT_EQ(plain->name(), "euler");
  EXPECT_EQ(plain->num_train_timesteps(), 500);
  EXPECT_TRUE(at::equal(plain->sigmas(), tensors.at("sigmas")));
  const auto shifted = make(saved, {.name = "FlowMatchEulerDiscreteScheduler", .flow_shift = 5.0});
  shifted->set_timesteps(7);
  EXPECT_TRUE(at::equal(shifted->sigmas(), tensors.at("shifted")));

  const auto forced =
      make(euler({{"num_train_timesteps", 500}}), {.name = "unipc", .flow_shift = 3.0});
  const auto wanted = make(unipc({{"num_train_timesteps", 500}}));
  forced->set_timesteps(9);
  wanted->set_timesteps(9);
  EXPECT_EQ(forced->describe(), wanted->describe());
  EXPECT_TRUE(at::equal(forced->sigmas(), wanted->sigmas()));
}

TEST(Schedulers, KnowEveryKeyThatDiffusersSaves) {
  // Strict: an unknown key, solver_p among them, would throw.
  const auto scheduler = make(read_json(test::golden("schedulers") / "cases.json")["saved"]);
  EXPECT_EQ(scheduler->describe()["flow_shift"], 3.0);
}

TEST(Schedulers, RecordedDefaultsAreNotTaken) {
  const auto scheduler =
      make(unipc({{"flow_shift", 7.0}, {"_use_default_values", {"flow_shift"}}}));
  EXPECT_EQ(scheduler->describe()["flow_shift"], 1.0);
}

TEST(Schedulers, GoOnBitIdenticallyFromASavedState) {
  at::manual_seed(5);
  for (const Json& json :
       {unipc(), unipc({{"solver_order", 3}}), unipc({{"solver_order", 1}}), euler()}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const int64_t steps = 8;
      const auto model = [&](const at::Tensor& x) {
        return (x.to(at::kFloat).sin() * 0.9).to(dtype);
      };
      const at::Tensor noise = at::randn({1, 4, 2, 3, 3});
      const auto whole = make(json);
      whole->set_timesteps(steps);
      at::Tensor sample = noise;
      std::vector<at::Tensor> samples{sample};
      std::vector<TensorMap> states{whole->state()};
      for (int64_t i = 0; i < steps; ++i) {
        sample = whole->step(model(sample), i, sample);
        samples.push_back(sample);
        states.push_back(whole->state());
      }
      for (int64_t start = 0; start <= steps; ++start) {
        const auto resumed = make(json);
        resumed->set_timesteps(steps);
        resumed->load_state(states[start], at::kCPU, "state");
        EXPECT_EQ(resumed->next_step(), start);
        at::Tensor again = samples[start];
        for (int64_t i = start; i < steps; ++i) again = resumed->step(model(again), i, again);
        EXPECT_TRUE(at::equal(again, sample)) << json.dump() << " from " << start;
      }
    }
  }
}

TEST(Schedulers, RefuseAStateOfAnotherRun) {
  const auto scheduler = make(unipc());
  scheduler->set_timesteps(4);
  const at::Tensor sample = at::ones({1, 2});
  at::Tensor next = scheduler->step(sample, 0, sample);
  scheduler->step(next, 1, next);
  const TensorMap state = scheduler->state();
  const auto load = [&](const TensorMap& changed, int64_t steps) {
    const auto other = make(unipc());
    other->set_timesteps(steps);
    return error_of([&] { other->load_state(changed, at::kCPU, "run.state"); },
                    ErrorCode::bad_data);
  };
  EXPECT_EQ(load(state, 4), "");
  EXPECT_NE(load(state, 5).find("run.state: key 'num_steps'"), std::string::npos);
  for (const auto& [key, value] : state) {
    TensorMap less = state;
    less.erase(key);
    EXPECT_NE(load(less, 4).find("key '" + key + "' is missing"), std::string::npos);
  }
  TensorMap beyond = state;
  beyond["next_step"] = at::scalar_tensor(9, at::kLong);
  EXPECT_NE(load(beyond, 4).find("key 'next_step'"), std::string::npos);
  TensorMap reshaped = state;
  reshaped["output.1"] = at::ones({7});
  EXPECT_NE(load(reshaped, 4).find("key 'output.1'"), std::string::npos);
  TensorMap text = state;
  text["order"] = at::ones({});
  EXPECT_NE(load(text, 4).find("key 'order'"), std::string::npos);
}

TEST(Schedulers, RefuseUnsupportedOptionsByName) {
  const std::vector<std::pair<Json, std::string>> wrong{
      {unipc({{"use_dynamic_shifting", true}}), "use_dynamic_shifting"},
      {unipc({{"thresholding", true}}), "thresholding"},
      {unipc({{"solver_p", "DDIMScheduler"}}), "solver_p"},
      {unipc({{"use_beta_sigmas", true}}), "use_beta_sigmas"},
      {unipc({{"use_exponential_sigmas", true}}), "use_exponential_sigmas"},
      {unipc({{"use_flow_sigmas", false}, {"use_karras_sigmas", true}}), "use_karras_sigmas"},
      {unipc({{"use_flow_sigmas", false}, {"shift_terminal", 0.1}}), "shift_terminal"},
      {unipc({{"predict_x0", false}}), "predict_x0"},
      {unipc({{"solver_type", "bh3"}}), "solver_type"},
      {unipc({{"solver_type", "bh1"}}), "solver_type"},
      {unipc({{"lower_order_final", false}}), "lower_order_final"},
      {unipc({{"solver_order", 0}}), "solver_order"},
      {unipc({{"prediction_type", "noise"}}), "prediction_type"},
      {unipc({{"final_sigmas_type", "last"}}), "final_sigmas_type"},
      {unipc({{"timestep_spacing", "even"}}), "timestep_spacing"},
      {unipc({{"beta_schedule", "sigmoid"}}), "beta_schedule"},
      {unipc({{"flow_shift", 0}}), "flow_shift"},
      {unipc({{"flow_shift", "3"}}), "flow_shift"},
      {unipc({{"num_train_timesteps", 0}}), "num_train_timesteps"},
      {unipc({{"no_such_key", 1}}), "no_such_key"},
      {euler({{"use_dynamic_shifting", true}}), "use_dynamic_shifting"},
      {euler({{"stochastic_sampling", true}}), "stochastic_sampling"},
      {euler({{"use_beta_sigmas", true}}), "use_beta_sigmas"},
      {euler({{"use_karras_sigmas", true}, {"use_exponential_sigmas", true}}), "use_karras_sigmas"},
      {euler({{"time_shift_type", "cubic"}}), "time_shift_type"},
      {euler({{"shift", -1}}), "shift"},
      {euler({{"_class_name", "DDIMScheduler"}}), "_class_name"},
  };
  for (const auto& [json, key] : wrong) {
    const std::string message = error_of([&] { make(json); }, ErrorCode::bad_data);
    EXPECT_NE(message.find("'" + key + "'"), std::string::npos) << json.dump() << ": " << message;
    EXPECT_NE(message.find("scheduler_config.json"), std::string::npos);
  }
  // A key that nobody knows is a warning where nothing is strict.
  EXPECT_NO_THROW(make(unipc({{"no_such_key", 1}}), {}, /*strict=*/false));
}

TEST(Schedulers, RefuseWrongChoices) {
  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  for (const double shift : {0.0, -3.0, inf, nan}) {
    EXPECT_NE(error_of([&] { make(unipc(), {.flow_shift = shift}); }, ErrorCode::usage), "")
        << shift;
  }
  EXPECT_NE(error_of([&] { make(unipc(), {.name = "ddim"}); }, ErrorCode::usage).find("ddim"),
            std::string::npos);
  for (const Json& json : {unipc(), euler()}) {
    const auto scheduler = make(json);
    for (const int64_t steps : {0, -1, 1'000'000}) {
      EXPECT_NE(error_of([&] { scheduler->set_timesteps(steps); }, ErrorCode::usage), "");
    }
  }
}

TEST(Schedulers, RefuseSchedulesThatDivideByZero) {
  // One step of a schedule stretched to a terminal level has nothing to stretch.
  const auto stretched = make(unipc({{"shift_terminal", 0.1}}));
  EXPECT_NE(error_of([&] { stretched->set_timesteps(1); }, ErrorCode::bad_data), "");
  // A shift this large puts many noise levels on the same fp32 number.
  const auto shifted = make(unipc({{"flow_shift", 1e8}}));
  EXPECT_NE(error_of([&] { shifted->set_timesteps(50); }, ErrorCode::bad_data).find("equal"),
            std::string::npos);
}

TEST(Schedulers, StepsRunInOrderOnly) {
  const auto scheduler = make(unipc());
  scheduler->set_timesteps(2);
  const at::Tensor sample = at::ones({1, 2});
  EXPECT_NE(error_of([&] { scheduler->step(sample, 1, sample); }, ErrorCode::internal), "");
  scheduler->step(sample, 0, sample);
  scheduler->step(sample, 1, sample);
  EXPECT_NE(error_of([&] { scheduler->step(sample, 2, sample); }, ErrorCode::internal), "");
}

}  // namespace
}  // namespace fovea::pipelines
