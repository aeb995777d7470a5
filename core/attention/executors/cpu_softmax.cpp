#include "core/attention/executors/cpu_softmax.h"

#include <algorithm>
#include <array>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "core/ops/kernel_threads.h"
#include "core/ops/launch.h"
#include "core/ops/product.h"
#include "kernels/attention/block_sparse_backward.h"

namespace fovea {
namespace {

// Valid keys at the beginning of each block [maps, blocks], for orders that leave segments where
// they are: padding is at the end of a segment, and no block straddles two. Blocks behind the last
// segment are whole.
std::vector<int32_t> block_lengths(const HostLists& lists, const TokenLayout& layout,
                                   int64_t item) {
  std::vector<int32_t> out;
  for (int64_t map = 0; map < lists.maps; ++map) {
    const int32_t* offsets = lists.kv_offsets.data() + map * (lists.num_kv_blocks + 1);
    size_t segment = 0;
    int64_t begin = 0;
    for (int64_t block = 0; block < lists.num_kv_blocks; ++block) {
      while (segment + 1 < layout.segments().size() &&
             offsets[block] >= begin + layout.segments()[segment].capacity) {
        begin += layout.segments()[segment++].capacity;
      }
      const at::Tensor& lengths = layout.valid_len()[segment];
      const int64_t valid =
          lengths.defined() ? lengths[item].item<int64_t>() : layout.segments()[segment].capacity;
      const int64_t size = offsets[block + 1] - offsets[block];
      const int64_t left =
          offsets[block] < layout.seq_len() ? begin + valid - offsets[block] : size;
      out.push_back(static_cast<int32_t>(std::clamp<int64_t>(left, 0, size)));
    }
  }
  return out;
}

template <typename T>
const T* pointer(const std::vector<T>& values) {
  return values.empty() ? nullptr : values.data();
}

kernels::BlockLists block_lists(const HostLists& lists, const std::vector<int32_t>& lengths) {
  kernels::BlockLists out;
  out.maps = lists.maps;
  out.map_head_stride = lists.maps > 1 ? 1 : 0;
  out.num_q_blocks = lists.num_q_blocks;
  out.num_kv_blocks = lists.num_kv_blocks;
  out.q_offsets = lists.q_offsets.data();
  out.kv_offsets = lists.kv_offsets.data();
  out.row_ptr = lists.row_ptr.data();
  out.kv_index = pointer(lists.kv_index);
  out.num_entries = static_cast<int64_t>(lists.kv_index.size());
  out.kv_block_len = pointer(lengths);
  out.bits_offset = pointer(lists.bits_offset);
  out.bits = pointer(lists.bits);
  out.num_bit_words = static_cast<int64_t>(lists.bits.size());
  return out;
}

kernels::HeadRows rows_of_item(const at::Tensor& x, int64_t item) {
  kernels::HeadRows out;
  out.data = x[item].const_data_ptr();
  out.dtype = ops::kernel_dtype(x.scalar_type());
  out.batch_stride = 0;
  out.head_stride = x.stride(1);
  out.row_stride = x.stride(2);
  return out;
}

kernels::ScaledIntegers integers_of_item(const IntegerRows& x, int64_t item) {
  const at::Tensor data = x.data[item], scale = x.scale[item];
  return {data.const_data_ptr<int8_t>(), 0, data.stride(0), data.stride(1),
          scale.const_data_ptr<float>(), 0, scale.stride(0)};
}

kernels::RowOrder order_of_item(const at::Tensor& rows, int64_t item) {
  if (!rows.defined()) return {};
  const at::Tensor own = rows[rows.size(0) == 1 ? 0 : item];
  return {own.const_data_ptr<int32_t>(), 0, own.size(0) == 1 ? 0 : own.stride(0)};
}

// [batch or 1, heads or 1, q_len or 1, kv_len or 1] fp32
kernels::LogitBias bias_of_item(const at::Tensor& bias, int64_t item, int64_t heads) {
  if (!bias.defined()) return {};
  FOVEA_ASSERT(bias.size(1) == 1 || bias.size(1) == heads, "bias ", bias.sizes());
  const at::Tensor own = bias[bias.size(0) == 1 ? 0 : item];
  const auto stride = [&](int64_t axis) { return own.size(axis) == 1 ? 0 : own.stride(axis); };
  return {own.const_data_ptr<float>(), 0, stride(0), stride(1), stride(2)};
}

at::Tensor with_whole_channels(const at::Tensor& x) {
  return x.stride(3) == 1 || x.size(3) == 1 ? x : x.contiguous();
}

kernels::MutableHeadRows written_rows_of_item(const at::Tensor& x, int64_t item) {
  if (!x.defined()) return {};
  const kernels::HeadRows rows = rows_of_item(x, item);
  return {x[item].mutable_data_ptr(), rows.dtype, 0, rows.head_stride, rows.row_stride};
}

const HostLists& lists_of_item(const SoftmaxLists& lists, int64_t item) {
  return lists.items[lists.items.size() == 1 ? 0 : item];
}

/// What the kernels are told about one item of the batch.
///
/// lengths  what the arguments point to
kernels::BlockSparseArgs args_of_item(const SoftmaxInputs& inputs, const SoftmaxLists& lists,
                                      const Partial& result, int64_t item,
                                      std::vector<int32_t>& lengths) {
  const at::Tensor& q = inputs.q;
  kernels::BlockSparseArgs args;
  args.batch = 1;
  args.heads = q.size(1);
  args.kv_heads = inputs.k.size(1);
  args.q_len = q.size(2);
  args.kv_len = inputs.keys();
  args.dim = q.size(3);
  args.value_dim = inputs.v.size(3);
  if (inputs.q_int8) {
    args.q_int8 = integers_of_item(*inputs.q_int8, item);
    args.k_int8 = integers_of_item(*inputs.k_int8, item);
  } else {
    args.q = rows_of_item(q, item);
    args.k = rows_of_item(inputs.k, item);
  }
  args.v = rows_of_item(inputs.v, item);
  if (inputs.more_k.defined()) {
    args.more = {rows_of_item(inputs.more_k, item), rows_of_item(inputs.more_v, item),
                 inputs.k.size(2), inputs.more_begin};
  }
  args.out = written_rows_of_item(result.out, item);
  args.lse = result.lse[item].mutable_data_ptr<float>();
  args.q_order = order_of_item(lists.q_rows, item);
  args.kv_order = order_of_item(lists.kv_rows, item);
  args.sm_scale = inputs.sm_scale;
  args.bias = bias_of_item(inputs.bias, item, args.heads);
  if (inputs.key_bias.defined()) {
    args.key_bias = bias_of_item(inputs.key_bias.unsqueeze(2), item, args.heads);
  }
  const HostLists& own = lists_of_item(lists, item);
  lengths.clear();
  if (inputs.padding) lengths = block_lengths(own, *inputs.padding, item);
  args.lists = block_lists(own, lengths);
  return args;
}

Partial run_forward(const SoftmaxInputs& inputs, const SoftmaxLists& lists, at::Tensor& workspace) {
  const at::Tensor& q = inputs.q;
  const int64_t batch = q.size(0), heads = q.size(1), q_len = q.size(2);
  Partial result;
  result.out = at::empty({batch, heads, q_len, inputs.v.size(3)}, inputs.v.options());
  result.lse = at::empty({batch, heads, q_len}, q.options().dtype(at::kFloat));
  const kernels::Parallel parallel = ops::all_threads();
  std::vector<int32_t> lengths;
  for (int64_t item = 0; item < batch; ++item) {
    const kernels::BlockSparseArgs args = args_of_item(inputs, lists, result, item, lengths);
    const kernels::Status checked = kernels::check(args);
    FOVEA_ASSERT(checked.ok(), checked.message);
    const int64_t bytes = kernels::attention_workspace_bytes(args, parallel.threads);
    const kernels::Status status = kernels::block_sparse_cpu(
        args, ops::workspace_in(workspace, bytes), parallel, kernels::best_isa());
    FOVEA_ASSERT(status.ok(), status.message);
  }
  return result;
}

// Undefined where not wanted.
struct SoftmaxGradients {
  at::Tensor q, k, v;
  at::Tensor key_bias;  // fp32 [batch, heads, keys]
  at::Tensor more_k, more_v;
};

// out     with its gradient
// lse     the gradient may be undefined
// wanted  defined tensors of the gradients' shapes
void run_backward(const SoftmaxInputs& inputs, const SoftmaxLists& lists, const Partial& result,
                  const Partial& gradient, const SoftmaxGradients& wanted) {
  const kernels::Parallel parallel = ops::all_threads();
  std::vector<int32_t> lengths;
  at::Tensor workspace;
  for (int64_t item = 0; item < inputs.q.size(0); ++item) {
    kernels::BlockSparseBackwardArgs args;
    args.forward = args_of_item(inputs, lists, result, item, lengths);
    args.grad_out = rows_of_item(gradient.out, item);
    if (gradient.lse.defined()) args.grad_lse = gradient.lse[item].const_data_ptr<float>();
    args.grad_q = written_rows_of_item(wanted.q, item);
    args.grad_k = written_rows_of_item(wanted.k, item);
    args.grad_v = written_rows_of_item(wanted.v, item);
    args.grad_more_k = written_rows_of_item(wanted.more_k, item);
    args.grad_more_v = written_rows_of_item(wanted.more_v, item);
    if (wanted.key_bias.defined()) {
      args.grad_key_bias = wanted.key_bias[item].mutable_data_ptr<float>();
    }
    const kernels::Status checked = kernels::check(args);
    FOVEA_ASSERT(checked.ok(), checked.message);
    const int64_t bytes = kernels::attention_backward_workspace_bytes(args, parallel.threads);
    const kernels::Status status = kernels::block_sparse_backward_cpu(
        args, ops::workspace_in(workspace, bytes), parallel, kernels::best_isa());
    FOVEA_ASSERT(status.ok(), status.message);
  }
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using SharedLists = std::shared_ptr<const SoftmaxLists>;

// What the forward pass takes beside tensors that may have gradients; those are in `inputs` too.
struct SoftmaxTask {
  const SoftmaxInputs& inputs;
  const SharedLists& lists;
  at::Tensor& workspace;
};

// What may have gradients.
constexpr at::Tensor SoftmaxInputs::*kDifferentiable[] = {
    &SoftmaxInputs::q,        &SoftmaxInputs::k,      &SoftmaxInputs::v,
    &SoftmaxInputs::key_bias, &SoftmaxInputs::more_k, &SoftmaxInputs::more_v};

// The same for the backward pass, without those tensors.
struct SavedSoftmax : torch::CustomClassHolder {
  SoftmaxInputs inputs;
  SharedLists lists;
  std::vector<size_t> given;  // which of those tensors were there
};

class Softmax : public torch::autograd::Function<Softmax> {
 public:
  // given  those of kDifferentiable that are there: LibTorch takes no undefined tensor here
  static variable_list forward(AutogradContext* context, at::TensorList given,
                               const SoftmaxTask& task) {
    const Partial result = run_forward(task.inputs, *task.lists, task.workspace);
    variable_list kept = {result.out, result.lse};
    kept.insert(kept.end(), given.begin(), given.end());
    context->save_for_backward(std::move(kept));
    context->set_materialize_grads(false);
    auto saved = c10::make_intrusive<SavedSoftmax>();
    saved->inputs = task.inputs;
    for (size_t i = 0; i < std::size(kDifferentiable); ++i) {
      at::Tensor& x = saved->inputs.*kDifferentiable[i];
      if (x.defined()) saved->given.push_back(i);
      x.reset();
    }
    saved->lists = task.lists;
    context->saved_data["softmax"] = at::IValue::make_capsule(std::move(saved));
    return {result.out, result.lse};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    require(!at::GradMode::is_enabled(), ErrorCode::usage, "attention",
            "the cpu executor has no second derivatives");
    const auto saved = c10::static_intrusive_pointer_cast<SavedSoftmax>(
        context->saved_data["softmax"].toCapsule());
    const variable_list tensors = context->get_saved_variables();
    const Partial result{tensors[0], tensors[1]};
    SoftmaxInputs inputs = saved->inputs;
    std::array<bool, std::size(kDifferentiable)> needed{};
    for (size_t i = 0; i < saved->given.size(); ++i) {
      inputs.*kDifferentiable[saved->given[i]] = tensors[i + 2];
      needed[saved->given[i]] = context->needs_input_grad(i);
    }
    Partial gradient;
    gradient.out =
        gradients[0].defined() ? with_whole_channels(gradients[0]) : at::zeros_like(result.out);
    if (gradients[1].defined()) gradient.lse = gradients[1].contiguous();
    const auto wanted = [&](bool is_needed, const at::Tensor& x) {
      return is_needed ? at::empty(x.sizes(), x.options()) : at::Tensor();
    };
    SoftmaxGradients out;
    out.q = wanted(needed[0], inputs.q);
    out.k = wanted(needed[1], inputs.k);
    out.v = wanted(needed[2], inputs.v);
    // Pooled keys have gradients where the others have.
    out.more_k = wanted(needed[1] && inputs.more_k.defined(), inputs.more_k);
    out.more_v = wanted(needed[2] && inputs.more_v.defined(), inputs.more_v);
    if (needed[3]) {
      out.key_bias =
          at::empty({inputs.q.size(0), inputs.q.size(1), inputs.keys()}, inputs.key_bias.options());
    }
    run_backward(inputs, *saved->lists, result, gradient, out);
    if (needed[3]) out.key_bias = ops::sum_to_shape(out.key_bias, inputs.key_bias.sizes());
    const variable_list all = {out.q, out.k, out.v, out.key_bias, out.more_k, out.more_v};
    variable_list of_given;
    for (const size_t i : saved->given) of_given.push_back(all[i]);
    of_given.emplace_back();
    return of_given;
  }
};

}  // namespace

Partial cpu_softmax(const SoftmaxInputs& inputs, const SharedLists& lists, at::Tensor& workspace) {
  SoftmaxInputs whole = inputs;
  for (at::Tensor* x : {&whole.q, &whole.k, &whole.v}) *x = with_whole_channels(*x);
  for (at::Tensor* x : {&whole.more_k, &whole.more_v}) {
    if (x->defined()) *x = x->contiguous();
  }
  for (at::Tensor* x : {&whole.bias, &whole.key_bias}) {
    if (x->defined()) *x = x->to(at::kFloat);
  }
  if (!at::GradMode::is_enabled() || whole.q_int8) return run_forward(whole, *lists, workspace);
  variable_list given;
  for (at::Tensor SoftmaxInputs::*x : kDifferentiable) {
    if ((whole.*x).defined()) given.push_back(whole.*x);
  }
  const variable_list out =
      Softmax::apply(at::TensorList(given), SoftmaxTask{whole, lists, workspace});
  return {out[0], out[1]};
}

}  // namespace fovea
