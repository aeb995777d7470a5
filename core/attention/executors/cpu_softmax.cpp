#include "core/attention/executors/cpu_softmax.h"

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

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

// What the forward pass gives, and what it finds on the way for quantized weights.
struct Computed {
  Partial result;                   // its lse without the bias of rows
  at::Tensor row_max;               // fp32 [batch, heads, q_len]
  std::vector<at::Tensor> largest;  // of each item, fp32 [heads or 1, entries]
};

// Such weights need nothing that is found on the way.
bool rounds_by_powers_of_2(const Quantized& p) {
  return p.format == NumberFormat::e4m3 && p.unit == ScaleUnit::head;
}

kernels::QuantizedWeights weights_of_item(const SoftmaxInputs& inputs, const Computed& computed,
                                          int64_t item) {
  kernels::QuantizedWeights out;
  if (inputs.p.format == NumberFormat::storage) return out;
  out.format = inputs.p.format == NumberFormat::int8 ? kernels::WeightFormat::int8
                                                     : kernels::WeightFormat::e4m3;
  if (!rounds_by_powers_of_2(inputs.p)) {
    out.row_max = computed.row_max[item].mutable_data_ptr<float>();
  }
  if (inputs.p.unit == ScaleUnit::head) return out;
  out.per_entry = true;
  const at::Tensor& largest = computed.largest[static_cast<size_t>(item)];
  out.largest = largest.mutable_data_ptr<float>();
  out.largest_head_stride = largest.size(0) == 1 ? 0 : largest.size(1);
  if (inputs.counted.defined()) out.counted = inputs.counted[item].const_data_ptr<uint8_t>();
  return out;
}

/// What the kernels are told about one item of the batch.
///
/// lengths  what the arguments point to
kernels::BlockSparseArgs args_of_item(const SoftmaxInputs& inputs, const SoftmaxLists& lists,
                                      const Computed& computed, int64_t item,
                                      std::vector<int32_t>& lengths) {
  const Partial& result = computed.result;
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
  args.weights = weights_of_item(inputs, computed, item);
  return args;
}

// Memory for results.
Computed make_results(const SoftmaxInputs& inputs, const SoftmaxLists& lists) {
  const at::Tensor& q = inputs.q;
  const int64_t batch = q.size(0), heads = q.size(1), q_len = q.size(2);
  const auto numbers = q.options().dtype(at::kFloat);
  Computed out;
  out.result.out = at::empty({batch, heads, q_len, inputs.v.size(3)}, inputs.v.options());
  out.result.lse = at::empty({batch, heads, q_len}, numbers);
  if (inputs.p.format == NumberFormat::storage) return out;
  if (!rounds_by_powers_of_2(inputs.p)) out.row_max = at::empty_like(out.result.lse);
  for (int64_t item = 0; item < batch && inputs.p.unit == ScaleUnit::block; ++item) {
    const HostLists& own = lists_of_item(lists, item);
    // Where each head has a map, its entries are its own.
    const int64_t rows = own.maps > 1 ? 1 : heads;
    out.largest.push_back(at::empty({rows, static_cast<int64_t>(own.kv_index.size())}, numbers));
  }
  return out;
}

Computed run_forward(const SoftmaxInputs& inputs, const SoftmaxLists& lists,
                     at::Tensor& workspace) {
  const Computed computed = make_results(inputs, lists);
  const kernels::Parallel parallel = ops::all_threads();
  std::vector<int32_t> lengths;
  for (int64_t item = 0; item < inputs.q.size(0); ++item) {
    const kernels::BlockSparseArgs args = args_of_item(inputs, lists, computed, item, lengths);
    const kernels::Status checked = kernels::check(args);
    FOVEA_ASSERT(checked.ok(), checked.message);
    const int64_t bytes = kernels::attention_workspace_bytes(args, parallel.threads);
    const kernels::Status status = kernels::block_sparse_cpu(
        args, ops::workspace_in(workspace, bytes), parallel, kernels::best_isa());
    FOVEA_ASSERT(status.ok(), status.message);
  }
  return computed;
}

Partial with_row_bias(const Partial& result, const at::Tensor& bias) {
  return {result.out, bias.defined() ? result.lse + bias : result.lse};
}

// Undefined where not wanted.
struct SoftmaxGradients {
  at::Tensor q, k, v;
  at::Tensor of_keys;  // fp32 [batch, heads, keys]: those of logits, added up over the rows
  at::Tensor of_rows;  // fp32 [batch, heads, q_len]: added up over the keys
  at::Tensor bias;     // fp32, as the bias; 0
  at::Tensor more_k, more_v;
};

// gradient  of `out`, and of `lse` where it is defined
// wanted    defined tensors of the gradients' shapes
void run_backward(const SoftmaxInputs& inputs, const SoftmaxLists& lists, const Computed& computed,
                  const Partial& gradient, const SoftmaxGradients& wanted) {
  const kernels::Parallel parallel = ops::all_threads();
  std::vector<int32_t> lengths;
  at::Tensor workspace;
  const auto numbers = [](const at::Tensor& x, int64_t item) {
    return x.defined() ? x[item].mutable_data_ptr<float>() : nullptr;
  };
  for (int64_t item = 0; item < inputs.q.size(0); ++item) {
    kernels::BlockSparseBackwardArgs args;
    args.forward = args_of_item(inputs, lists, computed, item, lengths);
    args.grad_out = rows_of_item(gradient.out, item);
    args.grad_lse = numbers(gradient.lse, item);
    args.grad_q = written_rows_of_item(wanted.q, item);
    args.grad_k = written_rows_of_item(wanted.k, item);
    args.grad_v = written_rows_of_item(wanted.v, item);
    args.grad_more_k = written_rows_of_item(wanted.more_k, item);
    args.grad_more_v = written_rows_of_item(wanted.more_v, item);
    args.grad_key_bias = numbers(wanted.of_keys, item);
    args.grad_row_bias = numbers(wanted.of_rows, item);
    at::Tensor logits;
    if (wanted.bias.defined()) {
      logits =
          at::zeros({inputs.q.size(1), inputs.q.size(2), inputs.keys()}, wanted.bias.options());
      args.grad_bias = logits.mutable_data_ptr<float>();
    }
    const kernels::Status checked = kernels::check(args);
    FOVEA_ASSERT(checked.ok(), checked.message);
    const int64_t bytes = kernels::attention_backward_workspace_bytes(args, parallel.threads);
    const kernels::Status status = kernels::block_sparse_backward_cpu(
        args, ops::workspace_in(workspace, bytes), parallel, kernels::best_isa());
    FOVEA_ASSERT(status.ok(), status.message);
    if (!wanted.bias.defined()) continue;
    at::Tensor own = wanted.bias[wanted.bias.size(0) == 1 ? 0 : item];
    own.add_(ops::sum_to_shape(logits, own.sizes()));
  }
}

// 8-bit integers as what they stand for.
at::Tensor values_of(const IntegerRows& x) { return x.data.to(at::kFloat) * x.scale.unsqueeze(3); }

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using SharedLists = std::shared_ptr<const SoftmaxLists>;

// What the forward pass takes beside tensors that may have gradients; those are in `inputs` too.
struct SoftmaxTask {
  const SoftmaxInputs& inputs;
  const SharedLists& lists;
  at::Tensor& workspace;
};

// What may have gradients. LibTorch is given those that are defined, in this order.
constexpr at::Tensor SoftmaxInputs::*kDifferentiable[] = {
    &SoftmaxInputs::q,        &SoftmaxInputs::k,     &SoftmaxInputs::v,
    &SoftmaxInputs::key_bias, &SoftmaxInputs::bias,  &SoftmaxInputs::row_bias,
    &SoftmaxInputs::more_k,   &SoftmaxInputs::more_v};
constexpr size_t kInputs = std::size(kDifferentiable);
constexpr size_t kKeyBias = 3, kBias = 4, kRowBias = 5;

// The same for the backward pass, without those tensors.
struct SavedSoftmax : torch::CustomClassHolder {
  SoftmaxInputs inputs;
  SharedLists lists;
  Computed computed;
  std::array<bool, kInputs> given = {};

  bool needs(const AutogradContext& context, size_t input) const {
    const auto edge = static_cast<size_t>(std::count(given.begin(), given.begin() + input, true));
    return given[input] && context.needs_input_grad(edge);
  }
};

class Softmax : public torch::autograd::Function<Softmax> {
 public:
  static variable_list forward(AutogradContext* context, at::TensorList /*given*/,
                               const SoftmaxTask& task) {
    Computed computed = run_forward(task.inputs, *task.lists, task.workspace);
    const Partial result = with_row_bias(computed.result, task.inputs.row_bias);
    auto saved = c10::make_intrusive<SavedSoftmax>();
    saved->inputs = task.inputs;
    for (size_t i = 0; i < kInputs; ++i) {
      saved->given[i] = (task.inputs.*kDifferentiable[i]).defined();
    }
    if (task.inputs.q_int8) saved->inputs.q = saved->inputs.k = at::Tensor();
    variable_list tensors;
    for (at::Tensor SoftmaxInputs::*x : kDifferentiable) {
      tensors.push_back(saved->inputs.*x);
      (saved->inputs.*x).reset();
    }
    tensors.insert(tensors.end(), {computed.result.out, computed.result.lse});
    context->save_for_backward(tensors);
    context->set_materialize_grads(false);
    computed.result = {};
    saved->computed = std::move(computed);
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
    for (size_t i = 0; i < kInputs; ++i) inputs.*kDifferentiable[i] = tensors[i];
    Computed computed = saved->computed;
    computed.result = {tensors[kInputs], tensors[kInputs + 1]};
    Partial gradient;
    gradient.out = gradients[0].defined() ? with_whole_channels(gradients[0])
                                          : at::zeros_like(computed.result.out);
    if (gradients[1].defined()) gradient.lse = gradients[1].contiguous();
    if (inputs.q_int8) {
      inputs.q = values_of(*std::exchange(inputs.q_int8, std::nullopt));
      inputs.k = values_of(*std::exchange(inputs.k_int8, std::nullopt));
      for (at::Tensor* x : {&inputs.v, &computed.result.out, &gradient.out}) *x = x->to(at::kFloat);
    }
    const SoftmaxGradients out = memory_for_gradients(*context, *saved, inputs);
    run_backward(inputs, *saved->lists, computed, gradient, out);
    std::array<at::Tensor, kInputs> all = {out.q,    out.k, out.v,      {},
                                           out.bias, {},    out.more_k, out.more_v};
    if (saved->needs(*context, kKeyBias)) {
      all[kKeyBias] = ops::sum_to_shape(out.of_keys, inputs.key_bias.sizes());
    }
    if (saved->needs(*context, kBias) && !out.bias.defined()) {
      all[kBias] = inputs.bias.size(2) == 1
                       ? ops::sum_to_shape(out.of_keys.unsqueeze(2), inputs.bias.sizes())
                       : ops::sum_to_shape(out.of_rows.unsqueeze(3), inputs.bias.sizes());
    }
    if (saved->needs(*context, kRowBias)) {
      all[kRowBias] = of_lse(computed.result, gradient);
    }
    variable_list of_given;
    for (size_t i = 0; i < kInputs; ++i) {
      if (saved->given[i]) of_given.push_back(all[i]);
    }
    of_given.emplace_back();  // the task's
    return of_given;
  }

 private:
  // Rows without keys hand nothing on.
  static at::Tensor of_lse(const Partial& result, const Partial& gradient) {
    if (!gradient.lse.defined()) return {};
    return gradient.lse.masked_fill(result.lse.eq(-std::numeric_limits<float>::infinity()), 0);
  }

  static SoftmaxGradients memory_for_gradients(const AutogradContext& context,
                                               const SavedSoftmax& saved,
                                               const SoftmaxInputs& inputs) {
    const auto needs = [&](size_t input) { return saved.needs(context, input); };
    const auto wanted = [&](size_t input, const at::Tensor& x) {
      return needs(input) ? at::empty(x.sizes(), x.options()) : at::Tensor();
    };
    SoftmaxGradients out;
    out.q = wanted(0, inputs.q);
    out.k = wanted(1, inputs.k);
    out.v = wanted(2, inputs.v);
    if (inputs.more_k.defined()) {  // pooled keys have gradients where the others have
      out.more_k = wanted(1, inputs.more_k);
      out.more_v = wanted(2, inputs.more_v);
    }
    const bool biased = needs(kBias);
    const bool for_keys = biased && inputs.bias.size(2) == 1;
    const bool for_rows = biased && !for_keys && inputs.bias.size(3) == 1;
    const auto sums = [&](int64_t count) {
      return at::empty({inputs.q.size(0), inputs.q.size(1), count},
                       inputs.q.options().dtype(at::kFloat));
    };
    if (needs(kKeyBias) || for_keys) out.of_keys = sums(inputs.keys());
    if (for_rows) out.of_rows = sums(inputs.q.size(2));
    if (biased && !for_keys && !for_rows) out.bias = at::zeros_like(inputs.bias);
    return out;
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
  if (!at::GradMode::is_enabled()) {
    return with_row_bias(run_forward(whole, *lists, workspace).result, whole.row_bias);
  }
  variable_list given;
  for (at::Tensor SoftmaxInputs::*x : kDifferentiable) {
    if ((whole.*x).defined()) given.push_back(whole.*x);
  }
  const variable_list out =
      Softmax::apply(at::TensorList(given), SoftmaxTask{whole, lists, workspace});
  return {out[0], out[1]};
}

}  // namespace fovea
