#include "core/attention/planners/kmeans.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "core/attention/planners/sampling.h"
#include "core/ops/widened.h"

namespace fovea {
namespace {

constexpr int64_t kMaxDistances = 1 << 24;  // at once

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
  const int64_t clusters = centroid.size(2), tokens = x.size(2);
  const int64_t chunk = std::max<int64_t>(
      1, kMaxDistances / (x.size(0) * x.size(1) * std::max<int64_t>(clusters, 1)));
  const at::Tensor numbers = at::arange(clusters, at::device(x.device()).dtype(at::kLong));
  const auto seen = [&](int64_t begin, int64_t end) {  // [batch, 1, tokens, 1]
    const at::Tensor token = at::arange(begin, end, numbers.options()).view({1, 1, -1, 1});
    return token.lt(valid_len.view({-1, 1, 1, 1}));
  };
  Clusters out;
  out.centroid = centroid;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const at::Tensor half = out.centroid.square().sum(3).unsqueeze(2) / 2;
    at::Tensor sum = at::zeros_like(out.centroid), count = at::zeros_like(half.transpose(2, 3));
    at::Tensor valid = count;
    std::vector<at::Tensor> labels;
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      const int64_t end = std::min(begin + chunk, tokens);
      at::Tensor part = ops::widened(x.slice(2, begin, end));
      // Padding may hold anything, also NaN.
      if (valid_len.defined()) part = part.masked_fill(seen(begin, end).logical_not(), 0);
      // The nearest has the largest x·c − c²/2.
      labels.push_back((at::matmul(part, out.centroid.transpose(2, 3)) - half).argmax(3));
      // A product with ones adds in a fixed order on every device, scattering does not.
      at::Tensor is_in = labels.back().unsqueeze(3).eq(numbers).to(part.scalar_type());
      count = count + is_in.sum(2).unsqueeze(3);
      if (valid_len.defined()) is_in = is_in * seen(begin, end);
      valid = valid + is_in.sum(2).unsqueeze(3);
      sum = sum + at::matmul(is_in.transpose(2, 3), part);
    }
    out.centroid = at::where(valid.gt(0), sum / valid.clamp_min(1), out.centroid);
    out.label = at::cat(labels, 2);
    out.count = count.squeeze(3).to(at::kLong);
    out.valid = valid.squeeze(3).to(at::kLong);
  }
  return out;
}

}  // namespace fovea
