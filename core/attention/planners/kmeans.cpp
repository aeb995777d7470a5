#include "core/attention/planners/kmeans.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/attention/planners/sampling.h"
#include "core/ops/widened.h"
#include "core/parallel.h"

namespace fovea {
namespace {

// Distances at once: of a CPU's cache, of a GPU's memory.
constexpr int64_t kMaxCpuDistances = 1 << 20, kMaxDistances = 1 << 26;

// Of each cluster the sum of its valid tokens, their number, and that of all its tokens.
struct Sums {
  at::Tensor sum;           // [batch, heads, clusters, dim]
  at::Tensor valid, count;  // int64 [batch, heads, clusters]
};

// bool [batch or 1, 1, tokens]; undefined where all are valid
at::Tensor valid_mask(const at::Tensor& valid_len, int64_t tokens) {
  if (!valid_len.defined()) return {};
  return at::arange(tokens, valid_len.options()).view({1, 1, -1}).lt(valid_len.view({-1, 1, 1}));
}

// Token by token: of one head by one thread, so that their number changes no bit.
template <typename T>
void add_tokens(const at::Tensor& x, const at::Tensor& label, const at::Tensor& valid, Sums& to) {
  const int64_t heads = x.size(1), tokens = x.size(2), dim = x.size(3), clusters = to.sum.size(2);
  const bool* seen = valid.defined() ? valid.const_data_ptr<bool>() : nullptr;
  parallel_for(x.size(0) * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      const T* own = x.const_data_ptr<T>() + at / heads * x.stride(0) + at % heads * x.stride(1);
      const int64_t* labels = label.const_data_ptr<int64_t>() + at * tokens;
      const bool* counts =
          seen == nullptr || valid.size(0) == 1 ? seen : seen + at / heads * tokens;
      T* sum = to.sum.mutable_data_ptr<T>() + at * clusters * dim;
      int64_t* count = to.count.mutable_data_ptr<int64_t>() + at * clusters;
      int64_t* number = to.valid.mutable_data_ptr<int64_t>() + at * clusters;
      for (int64_t i = 0; i < tokens; ++i) {
        ++count[labels[i]];
        if (counts != nullptr && !counts[i]) continue;
        ++number[labels[i]];
        const T* from = own + i * x.stride(2);
        T* into = sum + labels[i] * dim;
        for (int64_t c = 0; c < dim; ++c) into[c] += from[c];
      }
    }
  });
}

// The cluster with the largest x·c − c²/2, the nearest one, of each token; of equal ones the first.
// LibTorch's argmax over so short an axis takes longer than the products.
template <typename T>
void nearest(const at::Tensor& product, const at::Tensor& half, int64_t first, at::Tensor& label) {
  const int64_t chunk = product.size(2), clusters = product.size(3), tokens = label.size(2);
  parallel_for(product.size(0) * product.size(1) * chunk, 512, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* own = product.const_data_ptr<T>() + row * clusters;
      const T* offset = half.const_data_ptr<T>() + row / chunk * clusters;
      int64_t best = 0;
      T most = own[0] - offset[0];
      for (int64_t i = 1; i < clusters; ++i) {
        const T value = own[i] - offset[i];
        best = value > most ? i : best;
        most = value > most ? value : most;
      }
      label.mutable_data_ptr<int64_t>()[row / chunk * tokens + first + row % chunk] = best;
    }
  });
}

// A product with ones adds in a fixed order on every device, scattering does not.
void add_products(const at::Tensor& x, const at::Tensor& label, const at::Tensor& valid,
                  int64_t chunk, Sums& to) {
  const int64_t clusters = to.sum.size(2), tokens = x.size(2);
  const at::Tensor numbers = at::arange(clusters, label.options());
  for (int64_t begin = 0; begin < tokens; begin += chunk) {
    const int64_t end = std::min(begin + chunk, tokens);
    at::Tensor is_in = label.slice(2, begin, end).unsqueeze(3).eq(numbers);
    to.count = to.count + is_in.sum(2);
    if (valid.defined()) is_in = is_in.logical_and(valid.slice(2, begin, end).unsqueeze(3));
    to.valid = to.valid + is_in.sum(2);
    const at::Tensor part = ops::widened(x.slice(2, begin, end));
    to.sum = to.sum + at::matmul(is_in.to(part.scalar_type()).transpose(2, 3), part);
  }
}

int64_t tokens_at_once(const at::Tensor& x, int64_t clusters, int64_t most) {
  return std::max<int64_t>(1, most / (x.size(0) * x.size(1) * std::max<int64_t>(clusters, 1)));
}

at::Tensor new_centroids(const Sums& sums, const at::Tensor& before) {
  const at::Tensor number = sums.valid.unsqueeze(3);
  return at::where(number.gt(0), sums.sum / number.clamp_min(1), before);
}

}  // namespace

at::Tensor first_centroids(const at::Tensor& x, int64_t clusters, int64_t seed,
                           const at::Tensor& valid_len) {
  const int64_t heads = x.size(1);
  const auto options = at::device(x.device()).dtype(at::kLong);
  const at::Tensor tokens =
      valid_len.defined() ? valid_len.view({-1, 1}) : at::full({1, 1}, x.size(2), options);
  const at::Tensor edge =
      (at::arange(clusters + 1, options) * tokens).floor_divide(clusters);  // of the runs
  const at::Tensor first = edge.slice(1, 0, clusters).unsqueeze(1);  // [batch or 1, 1, clusters]
  const at::Tensor length = edge.diff().unsqueeze(1).clamp_min(1);
  const at::Tensor counter = at::arange(heads * clusters, options).view({1, heads, clusters});
  const at::Tensor number =
      random_below(counter.expand({length.size(0), heads, clusters}), seed, length);
  // Of fewer tokens than clusters some are drawn twice.
  const at::Tensor token =
      (first + number).minimum((tokens - 1).unsqueeze(2)).clamp_min(0).unsqueeze(3);
  return ops::widened(x.gather(2, token.expand({x.size(0), heads, clusters, x.size(3)})));
}

Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations,
                 const at::Tensor& valid_len) {
  if (x.is_cuda() && ops::has_k_means(x, centroid.size(2))) {
    return ops::k_means(x, centroid, iterations, valid_len);
  }
  const int64_t clusters = centroid.size(2), tokens = x.size(2);
  const int64_t chunk = tokens_at_once(x, clusters, x.is_cpu() ? kMaxCpuDistances : kMaxDistances);
  const at::Tensor valid = valid_mask(valid_len, tokens);
  // Padding may hold anything, also NaN. A CPU widens once; of a GPU that would be memory.
  at::Tensor own = x.is_cpu() ? ops::widened(x) : x;
  if (valid.defined()) own = own.masked_fill(valid.logical_not().unsqueeze(3), 0);
  if (own.stride(3) != 1) own = own.contiguous();
  Clusters out;
  out.centroid = centroid;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const at::Tensor half = out.centroid.square().sum(3).unsqueeze(2) / 2;
    const at::Tensor turned = out.centroid.transpose(2, 3).contiguous();
    out.label = at::empty({x.size(0), x.size(1), tokens}, at::device(x.device()).dtype(at::kLong));
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      const int64_t end = std::min(begin + chunk, tokens);
      const at::Tensor product = at::matmul(ops::widened(own.slice(2, begin, end)), turned);
      if (!x.is_cpu()) {
        out.label.slice(2, begin, end).copy_((product - half).argmax(3));
      } else if (own.scalar_type() == at::kDouble) {
        nearest<double>(product.contiguous(), half, begin, out.label);
      } else {
        nearest<float>(product.contiguous(), half, begin, out.label);
      }
    }
    const auto counts = out.label.options();
    Sums sums{at::zeros(out.centroid.sizes(), out.centroid.options()),
              at::zeros(half.squeeze(2).sizes(), counts),
              at::zeros(half.squeeze(2).sizes(), counts)};
    if (!x.is_cpu()) {
      add_products(own, out.label, valid, chunk, sums);
    } else if (own.scalar_type() == at::kDouble) {
      add_tokens<double>(own, out.label, valid, sums);
    } else {
      add_tokens<float>(own, out.label, valid, sums);
    }
    out.centroid = new_centroids(sums, out.centroid);
    out.count = sums.count;
    out.valid = sums.valid;
  }
  out.order = at::argsort(out.label, /*stable=*/true, 2, false);
  return out;
}

}  // namespace fovea
