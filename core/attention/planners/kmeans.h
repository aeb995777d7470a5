#pragma once

#include <ATen/core/Tensor.h>

#include "core/ops/kmeans.h"

namespace fovea {

using ops::Clusters;

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
/// order. On GPUs by kernels of our own where they take it (`ops::k_means`).
///
/// x           [batch, heads, tokens, dim]
/// centroid    [batch, heads, clusters, dim]
/// iterations  1 at least; the centroids returned are the means of the labels returned
/// valid_len   as of first_centroids
Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations,
                 const at::Tensor& valid_len = {});

}  // namespace fovea
