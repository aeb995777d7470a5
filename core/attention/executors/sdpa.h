#pragma once

#include "core/attention/executor.h"

namespace fovea {

/// Kernels of LibTorch's attention on GPUs.
enum class SdpaKernel { any, cudnn, flash };

/// LibTorch's `scaled_dot_product_attention`: dense plans only, CPU and CUDA, with autograd.
///
/// With a kernel by name it takes that one alone and is called `sdpa_cudnn` or `sdpa_flash`: to be
/// measured beside ours.
class SdpaExecutor : public Executor {
 public:
  explicit SdpaExecutor(SdpaKernel kernel = SdpaKernel::any) : kernel_(kernel) {}

  std::string name() const override;
  std::optional<std::string> why_not(const AttentionPlan& plan,
                                     const AttentionCall& call) const override;
  AttentionResult run(const AttentionPlan& plan, const AttentionCall& call,
                      const LoweredPlan* lowered = nullptr) override;

 private:
  SdpaKernel kernel_;
};

}  // namespace fovea
