#pragma once

#include <ATen/core/Tensor.h>

namespace fovea::ops {

/// Groups of tokens around their means.
struct Clusters {
  at::Tensor centroid;  ///< [batch, heads, clusters, dim], fp32 at least
  at::Tensor label;     ///< int64 [batch, heads, tokens]: the cluster of each token
  at::Tensor order;     ///< int32 or int64 [batch, heads, tokens]: a stable sort by label
  at::Tensor count;     ///< int64 [batch, heads, clusters]: tokens in each, may be 0
  at::Tensor valid;     ///< of those the ones that are not padding
};

/// Whether `k_means` takes x [batch, heads, tokens, dim]: bf16 or fp16 with 64 or 128 channels, up
/// to 6144 clusters; a GPU's in a build with kernels for it.
bool has_k_means(const at::Tensor& x, int64_t clusters);

/// Lloyd's algorithm by kernels of our own, as planners/kmeans.h says. Products are of x's type,
/// centroids in two parts, and their sums fp32: tokens whose two nearest centroids are equally far
/// to 16 bits may join either. The same bits in every run. Without gradients.
///
/// centroid  [batch, heads, clusters, dim], of the range of x's type
Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations,
                 const at::Tensor& valid_len);

}  // namespace fovea::ops
