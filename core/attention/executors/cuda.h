#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/attention/executor.h"
#include "core/attention/executors/cuda_lists.h"
#include "core/attention/executors/partial.h"
#include "kernels/attention/block_sparse_backward_cuda.h"
#include "kernels/attention/eight_bit_cuda.h"

namespace fovea {

/// The kernel of an architecture behind `CudaExecutor`.
struct CudaBackend {
  const char* name;
  /// Why it does not run on a device or takes no such heads, or nothing.
  std::optional<std::string> (*why_not)(const AttentionCall& call);
  kernels::AttentionTile (*tile)(int64_t block_q, int64_t block_kv);
  /// Of packed lists; null: not offered.
  kernels::AttentionTile (*packed_tile)();
  kernels::Status (*run)(const kernels::CudaAttentionArgs& args, kernels::CudaTarget target);
  struct Backward {
    /// Why it gives no gradients of such heads, or nothing.
    std::optional<std::string> (*why_not)(const AttentionCall& call);
    kernels::AttentionTile (*column_tile)(int64_t block_q, int64_t block_kv);
    int64_t (*workspace_bytes)(const kernels::CudaAttentionBackwardArgs& args);
    kernels::Status (*run)(const kernels::CudaAttentionBackwardArgs& args,
                           kernels::CudaTarget target);
  } backward;
  /// In 8-bit numbers, with tiles of `kEightBitTile`; null: not offered.
  kernels::Status (*run_bytes)(const kernels::CudaAttentionArgs& args,
                               const kernels::EightBitOperands& operands,
                               kernels::CudaTarget target) = nullptr;
};

/// `cuda_sm90`: compute capability 9.0, 64 or 128 channels; `cuda_sm80`: 8.0 and newer, 32, 64, 96,
/// 128 or 256 channels. Only in builds with CUDA.
const CudaBackend& sm90_backend();
const CudaBackend& sm80_backend();

/// Whether anything was wrong with what only a device knows, such as offsets of blocks: kernels
/// leave it out, and set a word there. It is read without waiting, so that a later call tells it.
class FaultWord {
 public:
  /// Makes it on a device, and throws what earlier calls left.
  ///
  /// throws  Error bad_data
  const at::Tensor& begin(at::Device device);
  /// Has the word sent to the host.
  void send();

 private:
  at::Tensor word_, host_;  // int32 [1]
};

/// Plans on a GPU, in bf16 or fp16 or the 8-bit numbers that they ask for, with fp32 sums: softmax
/// branches by the kernel of a backend, others by tensor algebra. Differentiable once, but for
/// biases and 8-bit numbers.
///
/// Neither `lower` nor `run` nor gradients wait for the GPU or copy from or to it, and their
/// results are the same bits in every run; all of it, and the plan before it, can be captured in a
/// CUDA graph after a call of the same shapes, which leaves what the host knows on the device.
/// Plans with predicates are different: `lower` waits for the number of their masks, and so does
/// `run` where gradients are wanted that were not when it was lowered. Such plans are made of what
/// the host knows, and kept; only `run` is for a graph then. The executor has to live as long as
/// the graph.
class CudaExecutor : public Executor {
 public:
  explicit CudaExecutor(const CudaBackend& backend) : backend_(backend) {}

  std::string name() const override { return backend_.name; }
  std::optional<std::string> why_not(const AttentionPlan& plan,
                                     const AttentionCall& call) const override;
  std::shared_ptr<const LoweredPlan> lower(const AttentionPlan& plan,
                                           const AttentionCall& call) const override;
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan* lowered) override;

 private:
  struct Softmax;
  struct Lowered;
  struct Inputs;

  std::shared_ptr<const Softmax> lower_softmax(const AttentionPlan& plan,
                                               const SoftmaxBranch& branch,
                                               const AttentionCall& call) const;
  Partial run_softmax(const Softmax& softmax, const SoftmaxBranch& branch,
                      const AttentionCall& call);
  Partial run_branch(const AttentionPlan& plan, size_t number, const AttentionCall& call,
                     const Lowered& lowered);

  const CudaBackend& backend_;
  mutable FaultWord fault_;
};

}  // namespace fovea
