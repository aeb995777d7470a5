#include "pipelines/resume_state.h"

#include <algorithm>
#include <chrono>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Text as a tensor, so that the file needs nothing but tensors.
at::Tensor text_tensor(const std::string& text) {
  at::Tensor out =
      at::empty({static_cast<int64_t>(text.size())}, at::TensorOptions().dtype(at::kByte));
  std::copy(text.begin(), text.end(), out.data_ptr<uint8_t>());
  return out;
}

std::string tensor_text(const at::Tensor& tensor) {
  const at::Tensor bytes = tensor.contiguous();
  return {reinterpret_cast<const char*>(bytes.data_ptr<uint8_t>()),
          static_cast<size_t>(bytes.numel())};
}

}  // namespace

ResumeState::ResumeState(const fs::path& output, std::string settings)
    : path_(output.string() + ".resume.safetensors"),
      settings_(std::move(settings)),
      last_save_(now_seconds()) {}

std::optional<DenoiseState> ResumeState::load() const {
  std::error_code ignored;
  if (!fs::exists(path_, ignored)) return std::nullopt;
  TensorMap tensors = load_tensors(path_);
  const auto take = [&](const char* name, at::ScalarType dtype) {
    const auto found = tensors.find(name);
    require(found != tensors.end() && found->second.scalar_type() == dtype, ErrorCode::bad_data,
            path_.string(), "tensor '", name, "' is missing or of another type");
    at::Tensor out = found->second;
    tensors.erase(found);
    return out;
  };
  require(tensor_text(take("settings", at::kByte)) == settings_, ErrorCode::conflict,
          path_.string(),
          "was made with other settings; remove it, or repeat the run it belongs to");
  const at::Tensor step = take("step", at::kLong);
  require(step.numel() == 1 && step.item<int64_t>() >= 0 && tensors.count("latents") == 1,
          ErrorCode::bad_data, path_.string(), "holds no valid step and latents");
  return DenoiseState{.step = step.item<int64_t>(), .tensors = std::move(tensors)};
}

void ResumeState::save(const DenoiseState& state, double min_seconds) {
  const double now = now_seconds();
  if (now - last_save_ < min_seconds) return;
  TensorMap tensors = state.tensors;
  tensors["settings"] = text_tensor(settings_);
  tensors["step"] = at::scalar_tensor(state.step, at::TensorOptions().dtype(at::kLong));
  save_tensors(path_, tensors, /*overwrite=*/true);
  last_save_ = now_seconds();
}

void ResumeState::remove() const {
  std::error_code ignored;
  fs::remove(path_, ignored);
}

}  // namespace fovea::pipelines
