#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// Groups of tokens around their means.
struct Clusters {
  at::Tensor centroid;  ///< [batch, heads, clusters, dim], fp32 at least
  at::Tensor label;     ///< int64 [batch, heads, tokens]: the cluster of each token
  at::Tensor count;     ///< int64 [batch, heads, clusters]: tokens in each, may be 0
};

/// Tokens to begin with: token after token is cut into as many runs as there are clusters, and of
/// each run one is drawn by counting, the same in all items.
///
/// x         [batch, heads, tokens, dim]
/// clusters  1 to tokens
/// seed      other ones draw others; heads do anyway
/// returns   [batch, heads, clusters, dim] in fp32 at least
at::Tensor first_centroids(const at::Tensor& x, int64_t clusters, int64_t seed);

/// Lloyd's algorithm with Euclidean distances: each token joins the nearest centroid, of equally
/// near ones the first, then centroids become the means of their tokens; one without tokens stays.
/// Nothing is read by the host, and sums run in a fixed order.
///
/// x           [batch, heads, tokens, dim]
/// centroid    [batch, heads, clusters, dim]
/// iterations  1 at least; the centroids returned are the means of the labels returned
Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations);

}  // namespace fovea
