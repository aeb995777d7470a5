#include "pipelines/schedulers/scheduler.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

constexpr int64_t kMaxSteps = 100'000;

}  // namespace

void Scheduler::set_timesteps(int64_t num_steps) {
  require(num_steps >= 1 && num_steps <= kMaxSteps, ErrorCode::usage, "steps", "expected 1 to ",
          kMaxSteps, ", got ", num_steps);
  const Schedule schedule = make_schedule(num_steps);
  FOVEA_ASSERT(schedule.sigmas.size(0) == schedule.timesteps.size(0) + 1);
  require(at::isfinite(schedule.sigmas).all().item<bool>(), ErrorCode::bad_data,
          name() + " scheduler", "the noise levels for ", num_steps,
          " steps are not finite: ", describe().dump());
  sigmas_ = schedule.sigmas;
  timesteps_ = schedule.timesteps;
  const at::Tensor values = timesteps_.to(at::kDouble);
  timestep_values_.assign(values.data_ptr<double>(), values.data_ptr<double>() + values.numel());
  next_step_ = 0;
  reset();
}

at::Tensor Scheduler::step(const at::Tensor& model_output, int64_t step_index,
                           const at::Tensor& sample) {
  FOVEA_ASSERT(step_index == next_step_ && step_index < num_steps(), "step ", step_index, " of ",
               num_steps(), ", the next one is ", next_step_);
  FOVEA_ASSERT(model_output.sizes() == sample.sizes() && model_output.device() == sample.device());
  at::Tensor next = do_step(model_output, step_index, sample);
  ++next_step_;
  return next;
}

TensorMap Scheduler::state() const {
  TensorMap state;
  state["next_step"] = at::scalar_tensor(next_step_, at::kLong);
  state["num_steps"] = at::scalar_tensor(num_steps(), at::kLong);
  save(state);
  return state;
}

void Scheduler::load_state(const TensorMap& state, at::Device device, const std::string& where) {
  FOVEA_ASSERT(timesteps_.defined(), "set_timesteps comes first");
  counter(state, "num_steps", num_steps(), num_steps(), where);
  const int64_t next_step = counter(state, "next_step", 0, num_steps(), where);
  reset();
  restore(state, device, where);
  next_step_ = next_step;
}

int64_t Scheduler::counter(const TensorMap& state, const std::string& name, int64_t low,
                           int64_t high, const std::string& where) {
  const auto found = state.find(name);
  require(found != state.end(), ErrorCode::bad_data, where, "key '", name, "' is missing");
  const at::Tensor& tensor = found->second;
  require(tensor.scalar_type() == at::kLong && tensor.numel() == 1, ErrorCode::bad_data, where,
          "key '", name, "': expected one int64, got ", tensor.numel(), " of ",
          at::toString(tensor.scalar_type()));
  const int64_t value = tensor.item<int64_t>();
  require(value >= low && value <= high, ErrorCode::bad_data, where, "key '", name, "': expected ",
          low, " to ", high, ", got ", value);
  return value;
}

}  // namespace fovea::pipelines
