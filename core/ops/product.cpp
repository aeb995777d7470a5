#include "core/ops/product.h"

#include <algorithm>
#include <array>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/ExpandUtils.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/check.h"
#include "core/ops/kernel_threads.h"
#include "core/parallel.h"
#include "kernels/attention/product.h"

namespace fovea::ops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Up to so many slices are added one by one, without being moved first.
constexpr int64_t kFewSlices = 32;
constexpr int64_t kSlice = 1 << 13;  // below LibTorch's grain

bool is_ours(const at::Tensor& x) { return x.is_cpu() && x.scalar_type() == at::kFloat; }

void check_operands(const at::Tensor& a, const at::Tensor& b) {
  for (const at::Tensor* x : {&a, &b}) {
    FOVEA_ASSERT(is_ours(*x), "a product of ", x->scalar_type(), " on ", x->device());
  }
}

// The strides of two matrices, and of the result's rows.
kernels::ProductArgs strides_of(const at::Tensor& a, const at::Tensor& b, const at::Tensor& c) {
  kernels::ProductArgs args;
  args.columns = c.size(-1);
  args.a_row_stride = a.stride(-2), args.a_column_stride = a.stride(-1);
  args.b_row_stride = b.stride(-2), args.b_column_stride = b.stride(-1);
  args.c_row_stride = std::max(c.stride(-2), args.columns);
  return args;
}

void run(kernels::ProductArgs args, const std::vector<kernels::ProductItem>& items) {
  args.items = items.data();
  args.num_items = static_cast<int64_t>(items.size());
  const kernels::Status checked = kernels::check(args);
  FOVEA_ASSERT(checked.ok(), checked.message);
  const kernels::Parallel parallel = all_threads();
  at::Tensor memory;
  const kernels::Workspace workspace =
      workspace_in(memory, kernels::product_workspace_bytes(args, parallel.threads));
  const kernels::Status status =
      kernels::product_cpu(args, workspace, parallel, kernels::best_isa());
  FOVEA_ASSERT(status.ok(), status.message);
}

// Element offsets of all matrices of a tensor, its leading dimensions in order.
std::vector<int64_t> matrix_offsets(const at::Tensor& x) {
  std::vector<int64_t> out = {0};
  for (int64_t dim = 0; dim < x.dim() - 2; ++dim) {
    std::vector<int64_t> next;
    for (const int64_t offset : out) {
      for (int64_t i = 0; i < x.size(dim); ++i) next.push_back(offset + i * x.stride(dim));
    }
    out = std::move(next);
  }
  return out;
}

at::Tensor whole_product(const at::Tensor& a, const at::Tensor& b) {
  check_operands(a, b);
  FOVEA_ASSERT(a.size(-1) == b.size(-2), a.sizes(), " times ", b.sizes());
  const auto lead =
      at::infer_size(a.sizes().slice(0, a.dim() - 2), b.sizes().slice(0, b.dim() - 2));
  const auto with = [&](int64_t rows, int64_t columns) {
    std::vector<int64_t> sizes(lead.begin(), lead.end());
    sizes.insert(sizes.end(), {rows, columns});
    return sizes;
  };
  const at::Tensor left = a.expand(with(a.size(-2), a.size(-1)));
  const at::Tensor right = b.expand(with(b.size(-2), b.size(-1)));
  at::Tensor out = at::empty(with(a.size(-2), b.size(-1)), a.options());
  const std::vector<int64_t> from_a = matrix_offsets(left), from_b = matrix_offsets(right);
  std::vector<kernels::ProductItem> items;
  for (size_t i = 0; i < from_a.size(); ++i) {
    items.push_back(
        {left.const_data_ptr<float>() + from_a[i], right.const_data_ptr<float>() + from_b[i],
         out.mutable_data_ptr<float>() + static_cast<int64_t>(i) * out.size(-2) * out.size(-1),
         a.size(-2), a.size(-1)});
  }
  run(strides_of(left, right, out), items);
  return out;
}

// Calls f(batch, head, block, first row, number of rows).
template <typename F>
void for_each_block(const at::Tensor& x, const at::Tensor& offsets, F f) {
  const auto first = offsets.accessor<int64_t, 3>();
  for (int64_t b = 0; b < x.size(0); ++b) {
    for (int64_t h = 0; h < x.size(1); ++h) {
      const auto own = first[offsets.size(0) == 1 ? 0 : b][offsets.size(1) == 1 ? 0 : h];
      for (int64_t i = 0; i + 1 < offsets.size(2); ++i) f(b, h, i, own[i], own[i + 1] - own[i]);
    }
  }
}

float* element(const at::Tensor& x, int64_t b, int64_t h, int64_t i) {
  return x.mutable_data_ptr<float>() + b * x.stride(0) + h * x.stride(1) + i * x.stride(2);
}

const float* constant(const at::Tensor& x, int64_t b, int64_t h, int64_t i) {
  return x.const_data_ptr<float>() + b * x.stride(0) + h * x.stride(1) + i * x.stride(2);
}

class Product : public torch::autograd::Function<Product> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& a, const at::Tensor& b) {
    context->save_for_backward({a, b});
    return whole_product(a, b);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &a = saved[0], &b = saved[1], &g = gradients[0];
    variable_list out(2);
    if (context->needs_input_grad(0))
      out[0] = sum_to_shape(product(g, b.transpose(-2, -1)), a.sizes());
    if (context->needs_input_grad(1))
      out[1] = sum_to_shape(product(a.transpose(-2, -1), g), b.sizes());
    return out;
  }
};

class ProductOfBlocks : public torch::autograd::Function<ProductOfBlocks> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& y,
                            const at::Tensor& offsets) {
    context->save_for_backward({x, y, offsets});
    check_operands(x, y);
    const int64_t blocks = offsets.size(2) - 1;
    const at::Tensor out =
        at::empty({x.size(0), x.size(1), blocks, x.size(3), y.size(3)}, x.options());
    std::vector<kernels::ProductItem> items;
    for_each_block(x, offsets, [&](int64_t b, int64_t h, int64_t i, int64_t row, int64_t rows) {
      items.push_back(
          {constant(x, b, h, row), constant(y, b, h, row), element(out, b, h, i), x.size(3), rows});
    });
    run(strides_of(x.transpose(2, 3), y, out), items);
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &y = saved[1], &offsets = saved[2], &g = gradients[0];
    variable_list out(3);
    if (context->needs_input_grad(0)) out[0] = rows_times_blocks(y, g.transpose(3, 4), offsets);
    if (context->needs_input_grad(1)) out[1] = rows_times_blocks(x, g, offsets);
    return out;
  }
};

class RowsTimesBlocks : public torch::autograd::Function<RowsTimesBlocks> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const at::Tensor& matrices, const at::Tensor& offsets) {
    context->save_for_backward({x, matrices, offsets});
    check_operands(x, matrices);
    const at::Tensor out =
        at::empty({x.size(0), x.size(1), x.size(2), matrices.size(4)}, x.options());
    std::vector<kernels::ProductItem> items;
    for_each_block(x, offsets, [&](int64_t b, int64_t h, int64_t i, int64_t row, int64_t rows) {
      items.push_back({constant(x, b, h, row), constant(matrices, b, h, i), element(out, b, h, row),
                       rows, x.size(3)});
    });
    run(strides_of(x, matrices, out), items);
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &matrices = saved[1], &offsets = saved[2], &g = gradients[0];
    variable_list out(3);
    if (context->needs_input_grad(0)) {
      out[0] = rows_times_blocks(g, matrices.transpose(3, 4), offsets);
    }
    if (context->needs_input_grad(1)) out[1] = product_of_blocks(x, g, offsets);
    return out;
  }
};

enum class Number : int64_t { exp, log, elu_plus_one };

// Slices are too small for LibTorch's threads, and the same for any number of ours.
class Elementwise : public torch::autograd::Function<Elementwise> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, int64_t number) {
    const at::Tensor whole = x.contiguous();
    const at::Tensor out = at::empty_like(whole);
    const at::Tensor from = whole.view(-1), to = out.view(-1);
    const auto kind = static_cast<Number>(number);
    parallel_for((from.numel() + kSlice - 1) / kSlice, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t last = std::min((i + 1) * kSlice, from.numel());
        const at::Tensor own = from.slice(0, i * kSlice, last);
        at::Tensor result = to.slice(0, i * kSlice, last);
        if (kind == Number::exp) at::exp_out(result, own);
        if (kind == Number::log) at::log_out(result, own);
        if (kind == Number::elu_plus_one) at::elu_out(result, own).add_(1);
      }
    });
    context->save_for_backward({x, out});
    context->saved_data["number"] = number;
    return out;
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    const at::Tensor &x = saved[0], &out = saved[1], &g = gradients[0];
    const auto kind = static_cast<Number>(context->saved_data["number"].toInt());
    if (kind == Number::exp) return {g * out, at::Tensor()};
    if (kind == Number::log) return {g / x, at::Tensor()};
    return {at::where(x.gt(0), g, g * out), at::Tensor()};
  }
};

class Spread : public torch::autograd::Function<Spread> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x,
                            const std::vector<int64_t>& sizes) {
    context->saved_data["sizes"] = x.sizes().vec();
    return x.expand(sizes);
  }
  static variable_list backward(AutogradContext* context, variable_list gradients) {
    return {sum_to_shape(gradients[0], context->saved_data["sizes"].toIntVector()), at::Tensor()};
  }
};

}  // namespace

at::Tensor exp(const at::Tensor& x) {
  return is_ours(x) ? Elementwise::apply(x, static_cast<int64_t>(Number::exp)) : at::exp(x);
}

at::Tensor log(const at::Tensor& x) {
  return is_ours(x) ? Elementwise::apply(x, static_cast<int64_t>(Number::log)) : at::log(x);
}

at::Tensor elu_plus_one(const at::Tensor& x) {
  if (!is_ours(x)) return at::elu(x) + 1;
  return Elementwise::apply(x, static_cast<int64_t>(Number::elu_plus_one));
}

at::Tensor product(const at::Tensor& a, const at::Tensor& b) {
  // All rows against one matrix: one product, and one for the matrix's gradient.
  if (b.dim() == 2 && a.dim() > 2) {
    std::vector<int64_t> sizes = a.sizes().vec();
    sizes.back() = b.size(1);
    return Product::apply(a.reshape({-1, a.size(-1)}), b).view(sizes);
  }
  return Product::apply(a, b);
}

at::Tensor product_of_blocks(const at::Tensor& x, const at::Tensor& y, const at::Tensor& offsets) {
  return ProductOfBlocks::apply(x, y, offsets);
}

at::Tensor rows_times_blocks(const at::Tensor& x, const at::Tensor& matrices,
                             const at::Tensor& offsets) {
  return RowsTimesBlocks::apply(x, matrices, offsets);
}

at::Tensor sum_to_shape(const at::Tensor& x, at::IntArrayRef sizes) {
  if (x.sizes() == sizes) return x;
  if (!is_ours(x)) return x.sum_to_size(sizes);
  const auto own = static_cast<int64_t>(sizes.size());
  at::Tensor out = x;
  std::vector<int64_t> kept, many;  // dimensions that stay, and those of many slices
  for (int64_t dim = 0; dim < x.dim(); ++dim) {
    const int64_t at = dim - (x.dim() - own);
    if (at >= 0 && sizes[at] == x.size(dim)) {
      kept.push_back(dim);
    } else if (x.size(dim) > kFewSlices) {
      many.push_back(dim);
    } else {
      at::Tensor sum = out.narrow(dim, 0, std::min<int64_t>(out.size(dim), 1));
      for (int64_t i = 1; i < out.size(dim); ++i) sum = sum + out.narrow(dim, i, 1);
      out = sum.size(dim) == 1 ? sum : out.sum(dim, /*keepdim=*/true);  // of nothing
      kept.push_back(dim);
    }
  }
  if (many.empty()) return out.reshape(sizes);
  int64_t summed = 1, left = 1;
  for (const int64_t dim : many) summed *= out.size(dim);
  for (const int64_t dim : kept) left *= out.size(dim);
  if (kept.empty() || many.back() < kept.front()) {
    out = product(at::ones({1, summed}, x.options()), out.reshape({summed, left}));
  } else {
    std::vector<int64_t> order = kept;
    order.insert(order.end(), many.begin(), many.end());
    out = product(out.permute(order).reshape({left, summed}), at::ones({summed, 1}, x.options()));
  }
  return out.reshape(sizes);
}

at::Tensor spread(const at::Tensor& x, at::IntArrayRef sizes) {
  return x.sizes() == sizes ? x : Spread::apply(x, sizes.vec());
}

at::Tensor spread_heads(const at::Tensor& x, int64_t heads) {
  const int64_t own = x.size(1);
  if (own == heads) return x;
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.insert(sizes.begin() + 2, heads / own);
  return spread(x.unsqueeze(2), sizes).flatten(1, 2);
}

}  // namespace fovea::ops
