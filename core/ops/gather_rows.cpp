#include "core/ops/gather_rows.h"

#include <array>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/ops/device_kernel.h"
#include "kernels/ops/gather_rows.h"

namespace fovea::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

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

std::vector<at::Tensor> gather(const std::vector<RowsToGather>& parts, const at::Tensor& fault) {
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

struct Task {
  const std::vector<RowsToGather>& parts;
  const at::Tensor& fault;
};

// Beside the orders.
struct SavedParts : torch::CustomClassHolder {
  std::vector<std::array<int64_t, 2>> sizes;  // heads and rows of each tensor
  at::Tensor fault;
};

class GatherRows : public torch::autograd::Function<GatherRows> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList /*tensors*/,
                               const Task& task) {
    auto saved = c10::make_intrusive<SavedParts>();
    saved->fault = task.fault;
    variable_list orders;
    for (const RowsToGather& part : task.parts) {
      orders.push_back(part.rows);
      saved->sizes.push_back({part.x.size(1), part.x.size(2)});
    }
    context->save_for_backward(orders);
    context->saved_data["parts"] = at::IValue::make_capsule(std::move(saved));
    context->set_materialize_grads(false);
    return gather(task.parts, task.fault);
  }

  // Rows that are taken nowhere get zeros.
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    require(!c10::GradMode::is_enabled(), ErrorCode::usage, kOp, "has no second derivatives");
    const auto saved =
        c10::static_intrusive_pointer_cast<SavedParts>(context->saved_data["parts"].toCapsule());
    const variable_list orders = context->get_saved_variables();
    std::vector<RowsToGather> parts;
    std::vector<size_t> wanted;
    for (size_t i = 0; i < gradients.size(); ++i) {
      const at::Tensor& gradient = gradients[i];
      if (!gradient.defined() || !context->needs_input_grad(i)) continue;
      at::Tensor places;
      if (orders[i].defined()) places = places_of_rows(orders[i], saved->sizes[i][1]);
      parts.push_back({gradient, places, gradient.size(1)});
      wanted.push_back(i);
    }
    variable_list out(gradients.size() + 1);  // the last is the task's
    const std::vector<at::Tensor> gathered = gather(parts, saved->fault);
    for (size_t i = 0; i < wanted.size(); ++i) {
      out[wanted[i]] = sum_of_heads(gathered[i], saved->sizes[wanted[i]][0]);
    }
    return out;
  }
};

}  // namespace

at::Tensor with_aligned_rows(const at::Tensor& x) {
  return x.numel() == 0 || begins_aligned(x) ? x : x.clone(at::MemoryFormat::Contiguous);
}

at::Tensor places_of_rows(const at::Tensor& rows, int64_t count) {
  std::vector<int64_t> sizes = rows.sizes().vec();
  sizes.back() = count + 1;  // what is no row comes behind all
  const at::Tensor none = rows.lt(0).logical_or(rows.ge(count));
  const at::Tensor own = rows.masked_fill(none, count).to(at::kLong);
  const at::Tensor place = at::arange(rows.size(-1), rows.options()).expand_as(rows);
  const at::Tensor out = at::full(sizes, -1, rows.options()).scatter_(-1, own, place);
  return out.slice(-1, 0, count).contiguous();
}

at::Tensor sum_of_heads(const at::Tensor& x, int64_t heads) {
  if (x.size(1) == heads) return x;
  return x.unflatten(1, {heads, x.size(1) / heads}).sum(2, false, at::kFloat).to(x.scalar_type());
}

std::vector<at::Tensor> gather_rows(const std::vector<RowsToGather>& parts,
                                    const at::Tensor& fault) {
  if (!c10::GradMode::is_enabled()) return gather(parts, fault);
  std::vector<at::Tensor> tensors;
  for (const RowsToGather& part : parts) tensors.push_back(part.x);
  return GatherRows::apply(at::TensorList(tensors), Task{parts, fault});
}

}  // namespace fovea::ops
