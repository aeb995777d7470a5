#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// Groups of tokens around their means.
struct Clusters {
  at::Tensor centroid;  ///< [batch, heads, clusters, dim], fp32 at least
  at::Tensor label;     ///< int64 [batch, heads, tokens]: the cluster of each token
  at::Tensor count;     ///< int64 [batch, heads, clusters]: tokens in each, may be 0
  at::Tensor valid;     ///< of those the ones that are not padding
};

/// Tokens to begin with: token after token is cut into as many runs as there are clusters, and of
/// each run one is drawn by counting, the same in all items.
///
/// x          [batch, heads, tokens, dim]
/// clusters   1 to tokens
/// seed       other ones draw others; heads do anyway
/// valid_len  int64 [batch]: tokens of each item that are not padding, which comes last; undefined:
///            all. Padding is not drawn, but for items of nothing else
/// returns    [batch, heads, clusters, dim] in fp32 at least
at::Tensor first_centroids(const at::Tensor& x, int64_t clusters, int64_t seed,
                           const at::Tensor& valid_len = {});

/// Lloyd's algorithm with Euclidean distances: each token joins the nearest centroid, of equally
/// near ones the first, then centroids become the means of their tokens; one without tokens stays.
/// Padding joins too, but is in no mean. Nothing is read by the host, and sums run in a fixed
/// order.
///
/// x           [batch, heads, tokens, dim]
/// centroid    [batch, heads, clusters, dim]
/// iterations  1 at least; the centroids returned are the means of the labels returned
/// valid_len   as of first_centroids
Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations,
                 const at::Tensor& valid_len = {});
/// The same of bf16 by products of bf16 with fp32 sums, as GPUs are fast at: tokens whose two
/// nearest centroids are equally far to 16 bits may join either.
Clusters k_means_by_products(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations,
                             const at::Tensor& valid_len = {});

}  // namespace fovea
