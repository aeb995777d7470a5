#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/executors/cuda.h"
#include "core/check.h"
#include "kernels/common/capability.h"

namespace fovea {

#if FOVEA_HAS_CUDA
namespace {

std::optional<std::string> why_not_channels(const AttentionCall& call,
                                            const std::vector<int64_t>& known) {
  const int64_t channels = call.q.size(3);
  if (std::find(known.begin(), known.end(), channels) != known.end()) return std::nullopt;
  return fovea::str("takes ", at::IntArrayRef(known), " channels a head, not ", channels);
}

std::string capability_of(const AttentionCall& call) {
  const int capability = kernels::compute_capability(call.q.device().index());
  return str(capability / 10, ".", capability % 10);
}

std::optional<std::string> why_not_sm90(const AttentionCall& call) {
  if (!call.q.is_cuda()) return "runs on NVIDIA GPUs of compute capability 9.0";
  if (kernels::compute_capability(call.q.device().index()) != 90) {
    return "runs on compute capability 9.0, this GPU has " + capability_of(call);
  }
  return why_not_channels(call, {64, 128});
}

std::optional<std::string> why_not_sm80(const AttentionCall& call) {
  if (!call.q.is_cuda()) return "runs on NVIDIA GPUs of compute capability 8.0 and newer";
  if (kernels::compute_capability(call.q.device().index()) < 80) {
    return "runs on compute capability 8.0 and newer, this GPU has " + capability_of(call);
  }
  return why_not_channels(call, {32, 64, 96, 128, 256});
}

std::optional<std::string> why_no_kernel_gradients(const AttentionCall& call) {
  const int64_t channels = call.q.size(3);
  if (channels == 64 || channels == 128) return std::nullopt;
  return fovea::str("gives gradients of 64 or 128 channels a head, not of ", channels);
}

}  // namespace

const CudaBackend& sm90_backend() {
  static constexpr CudaBackend kBackend = {
      "cuda_sm90",
      &why_not_sm90,
      &kernels::sm90_tile,
      &kernels::sm90_packed_tile,
      &kernels::block_sparse_sm90,
      {&why_no_kernel_gradients, &kernels::sm90_column_tile,
       &kernels::sm90_backward_workspace_bytes, &kernels::block_sparse_backward_sm90},
      &kernels::eight_bit_attention_sm90};
  return kBackend;
}

const CudaBackend& sm80_backend() {
  static constexpr CudaBackend kBackend = {
      "cuda_sm80",
      &why_not_sm80,
      &kernels::sm80_tile,
      nullptr,
      &kernels::block_sparse_sm80,
      {&why_no_kernel_gradients, &kernels::sm90_column_tile,
       &kernels::sm80_backward_workspace_bytes, &kernels::block_sparse_backward_sm80}};
  return kBackend;
}
#endif

const at::Tensor& FaultWord::begin(at::Device device) {
  if (!word_.defined() || word_.device() != device) {
    word_ = at::zeros({1}, at::device(device).dtype(at::kInt));
    host_ = at::zeros({1}, at::device(at::kCPU).dtype(at::kInt).pinned_memory(device.is_cuda()));
  }
  if (*host_.const_data_ptr<int32_t>() != 0) {
    word_.zero_();
    host_.zero_();
    throw Error(ErrorCode::bad_data, "attention",
                "a plan of an earlier call had blocks that descend or lie outside of the sequence, "
                "unknown classes, or rows that are not there");
  }
  return word_;
}

void FaultWord::send() { host_.copy_(word_, /*non_blocking=*/true); }

}  // namespace fovea
