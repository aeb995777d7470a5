#include "pipelines/train/trainable.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"

namespace fovea::pipelines {

// Passes a network's requests on under the component's name.
class TrainableParameters::Component : public ParameterSource {
 public:
  Component(TrainableParameters& owner, std::string name, ParameterSource& initial)
      : owner_(owner), name_(std::move(name)), initial_(initial) {}

  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32) override {
    return owner_.add(name_ + "/" + name, initial_.get(name, shape, keep_fp32), keep_fp32);
  }
  bool has(const std::string& name) const override { return initial_.has(name); }

 private:
  TrainableParameters& owner_;
  std::string name_;
  ParameterSource& initial_;
};

ParameterSource& TrainableParameters::component(const std::string& name, ParameterSource& initial) {
  components_.push_back(std::make_unique<Component>(*this, name, initial));
  return *components_.back();
}

at::Tensor TrainableParameters::add(const std::string& name, const at::Tensor& initial,
                                    bool keep_fp32) {
  FOVEA_ASSERT(!master_.defined());
  const bool half = options_.dtype == at::kHalf || options_.dtype == at::kBFloat16;
  at::Tensor parameter =
      initial.detach().to(options_.device, keep_fp32 && half ? at::kFloat : options_.dtype,
                          /*non_blocking=*/false, /*copy=*/true);
  if (options_.channels_last && parameter.dim() >= 4) {
    parameter = parameter.contiguous(parameter.dim() == 5 ? at::MemoryFormat::ChannelsLast3d
                                                          : at::MemoryFormat::ChannelsLast);
  }
  parameter.set_requires_grad(true);
  slots_.push_back({name, parameter});
  return parameter;
}

bool TrainableParameters::is_half(const Slot& slot) const {
  return slot.parameter.element_size() == 2;
}

// The slot's elements in `row`, whose first element is number `row_begin`, as the parameter lies.
at::Tensor TrainableParameters::view(const at::Tensor& row, const Slot& slot,
                                     int64_t row_begin) const {
  return row.as_strided(slot.parameter.sizes(), slot.parameter.strides(),
                        row.storage_offset() + slot.begin - row_begin);
}

void TrainableParameters::finish() {
  FOVEA_ASSERT(!master_.defined() && !slots_.empty());
  const c10::NoGradGuard no_grad;
  const auto group = [&](const Slot& slot) {
    return (is_half(slot) ? 0 : 2) + (slot.parameter.dim() >= 2 ? 0 : 1);
  };
  std::stable_sort(slots_.begin(), slots_.end(),
                   [&](const Slot& a, const Slot& b) { return group(a) < group(b); });
  for (Slot& slot : slots_) {
    const bool decays = slot.parameter.dim() >= 2;
    slot.begin = numel_;
    numel_ += slot.parameter.numel();
    if (is_half(slot)) num_half_ = numel_;
    if (ranges_.empty() || ranges_.back().decays != decays) {
      ranges_.push_back({slot.begin, numel_, decays});
    }
    ranges_.back().end = numel_;
  }
  const at::ScalarType wide = options_.dtype == at::kDouble ? at::kDouble : at::kFloat;
  const auto options = at::TensorOptions(wide).device(options_.device);
  master_ = at::zeros({numel_}, options);
  gradient_ = at::zeros({numel_}, options);
  if (num_half_ > 0) {
    half_ = at::zeros({num_half_}, options.dtype(options_.dtype));
    half_gradient_ = at::zeros_like(half_);
  }
  for (Slot& slot : slots_) {
    at::Tensor wide_view = view(master_, slot);
    wide_view.copy_(slot.parameter);
    const bool half = is_half(slot);
    slot.parameter.set_data(half ? view(half_, slot) : wide_view);
    slot.parameter.mutable_grad() = view(half ? half_gradient_ : gradient_, slot);
  }
  publish();
}

void TrainableParameters::publish() {
  const c10::NoGradGuard no_grad;
  if (half_.defined()) half_.copy_(master_.narrow(0, 0, num_half_));
}

void TrainableParameters::clear_gradients() {
  gradient_.zero_();
  if (half_gradient_.defined()) half_gradient_.zero_();
}

void TrainableParameters::collect_gradients() {
  if (!half_gradient_.defined()) return;
  gradient_.narrow(0, 0, num_half_).add_(half_gradient_);
  half_gradient_.zero_();
}

TensorMap TrainableParameters::split(const at::Tensor& row) const {
  TensorMap out;
  for (const Slot& slot : slots_) out.emplace(slot.name, view(row, slot));
  return out;
}

TensorMap TrainableParameters::split(const at::Tensor& row, const std::string& component) const {
  TensorMap out;
  const std::string prefix = component + "/";
  for (const Slot& slot : slots_) {
    if (!slot.name.starts_with(prefix)) continue;
    out.emplace(slot.name.substr(prefix.size()), view(row, slot).contiguous());
  }
  return out;
}

void TrainableParameters::join(at::Tensor& row, const TensorMap& tensors,
                               const std::string& where) const {
  const c10::NoGradGuard no_grad;
  for (const Slot& slot : slots_) {
    const auto found = tensors.find(slot.name);
    require(found != tensors.end(), ErrorCode::bad_data, where, "missing tensor '", slot.name, "'");
    require(found->second.sizes() == slot.parameter.sizes(), ErrorCode::bad_data, where, "tensor '",
            slot.name, "': expected shape ", slot.parameter.sizes(), ", got ",
            found->second.sizes());
    view(row, slot).copy_(found->second);
  }
  require(tensors.size() == slots_.size(), ErrorCode::bad_data, where, "holds ", tensors.size(),
          " tensors, expected ", slots_.size());
}

}  // namespace fovea::pipelines
