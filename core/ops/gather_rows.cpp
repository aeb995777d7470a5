#include "core/ops/gather_rows.h"

#include <ATen/ATen.h>

#include "core/ops/device_kernel.h"
#include "kernels/ops/gather_rows.h"

namespace fovea::ops {
namespace {

constexpr const char* kOp = "gather_rows";

kernels::GatheredRows part_of(const RowsToGather& part, const at::Tensor& x,
                              const at::Tensor& out) {
  kernels::GatheredRows own;
  const kernels::DType dtype = kernel_dtype(x.scalar_type());
  own.in = {x.const_data_ptr(), dtype, x.stride(0), x.stride(1), x.stride(2)};
  own.out = {out.mutable_data_ptr(), dtype, out.stride(0), out.stride(1), out.stride(2)};
  own.in_heads = x.size(1), own.heads = part.heads;
  own.in_rows = x.size(2), own.rows = out.size(2);
  if (!part.rows.defined()) return own;
  const auto stride = [&](int64_t axis) {
    return part.rows.size(axis) == 1 ? 0 : part.rows.stride(axis);
  };
  own.order = {part.rows.const_data_ptr<int32_t>(), stride(0), stride(1)};
  return own;
}

bool begins_aligned(const at::Tensor& x) {
  const int64_t unit = 16 / x.element_size();
  if (reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 != 0) return false;
  for (int64_t axis = 0; axis < 3; ++axis) {
    const bool is_own = x.stride(axis) > 0 && x.stride(axis) % unit == 0;
    if (x.size(axis) > 1 && !is_own) return false;
  }
  return x.stride(3) == 1 || x.size(3) == 1;
}

// What there is one of has a stride that counts nothing, and may be any number.
at::Tensor with_plain_strides(const at::Tensor& x) {
  std::vector<int64_t> strides = x.strides().vec();
  for (int64_t axis = 0; axis < 3; ++axis) {
    if (x.size(axis) == 1) strides[static_cast<size_t>(axis)] = 0;
  }
  return x.as_strided(x.sizes(), strides, x.storage_offset());
}

}  // namespace

at::Tensor with_aligned_rows(const at::Tensor& x) {
  return x.numel() == 0 || begins_aligned(x) ? x : x.clone(at::MemoryFormat::Contiguous);
}

std::vector<at::Tensor> gather_rows(const std::vector<RowsToGather>& parts,
                                    const at::Tensor& fault) {
  std::vector<at::Tensor> sources, out;
  kernels::GatherRowsArgs args;
  for (const RowsToGather& part : parts) {
    const at::Tensor& x = part.x;
    FOVEA_ASSERT(!part.rows.defined() || part.rows.is_contiguous());
    const int64_t len = part.rows.defined() ? part.rows.size(2) : x.size(2);
    out.push_back(at::empty({x.size(0), part.heads, len, x.size(3)}, x.options()));
    // The empty ones too: all of them are results, but none is read.
    if (out.back().numel() == 0) continue;
    sources.push_back(with_plain_strides(with_aligned_rows(x)));
    args.batch = x.size(0);
    args.dim = x.size(3);
    args.parts[args.count++] = part_of(part, sources.back(), out.back());
  }
  if (args.count == 0) return out;
  args.fault = fault.mutable_data_ptr<int32_t>();
  const kernels::Status status = kernels::check(args);
  require(accepted(kOp, status), ErrorCode::device, kOp, status.message);
  run_on(kOp, fault.device(), args, &kernels::gather_rows_cpu,
         FOVEA_CUDA_LAUNCHER(gather_rows_cuda));
  return out;
}

}  // namespace fovea::ops
