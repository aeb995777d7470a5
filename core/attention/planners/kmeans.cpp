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

at::Tensor first_centroids(const at::Tensor& x, int64_t clusters, int64_t seed) {
  const int64_t heads = x.size(1), tokens = x.size(2);
  const auto options = at::device(x.device()).dtype(at::kLong);
  const at::Tensor edge =
      (at::arange(clusters + 1, options) * tokens).floor_divide(clusters);  // of the runs
  const at::Tensor counter = at::arange(heads * clusters, options).view({heads, clusters});
  const at::Tensor token =
      edge.slice(0, 0, clusters) + random_below(counter, seed, edge.diff());  // [heads, clusters]
  return ops::widened(x.gather(
      2, token.view({1, heads, clusters, 1}).expand({x.size(0), heads, clusters, x.size(3)})));
}

Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations) {
  const int64_t clusters = centroid.size(2), tokens = x.size(2);
  const int64_t chunk = std::max<int64_t>(
      1, kMaxDistances / (x.size(0) * x.size(1) * std::max<int64_t>(clusters, 1)));
  const at::Tensor numbers = at::arange(clusters, at::device(x.device()).dtype(at::kLong));
  Clusters out;
  out.centroid = centroid;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const at::Tensor half = out.centroid.square().sum(3).unsqueeze(2) / 2;
    at::Tensor sum = at::zeros_like(out.centroid), count = at::zeros_like(half.transpose(2, 3));
    std::vector<at::Tensor> labels;
    for (int64_t begin = 0; begin < tokens; begin += chunk) {
      const at::Tensor part = ops::widened(x.slice(2, begin, std::min(begin + chunk, tokens)));
      // The nearest has the largest x·c − c²/2.
      labels.push_back((at::matmul(part, out.centroid.transpose(2, 3)) - half).argmax(3));
      // A product with ones adds in a fixed order on every device, scattering does not.
      const at::Tensor is_in =
          labels.back().unsqueeze(3).eq(numbers).to(part.scalar_type()).transpose(2, 3);
      sum = sum + at::matmul(is_in, part);
      count = count + is_in.sum(3, /*keepdim=*/true);
    }
    out.centroid = at::where(count.gt(0), sum / count.clamp_min(1), out.centroid);
    out.label = at::cat(labels, 2);
    out.count = count.squeeze(3).to(at::kLong);
  }
  return out;
}

}  // namespace fovea
