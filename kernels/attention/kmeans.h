#pragma once

#include <cstdint>

#include "kernels/attention/block_sparse.h"
#include "kernels/common/host_device.h"

// One round of k-means (Lloyd's algorithm) of the tokens of each head, in four steps: factors,
// labels, sort, sums, and again factors, which makes centroids the means of their tokens. Sums run
// in a fixed order, so that all runs give the same bits.

namespace fovea::kernels {

/// Places of centroids that a step of the product takes; behind the last centroid are empty ones.
constexpr int64_t kKMeansPlaces = 64;
/// Tokens of a cluster that are added up at a time.
constexpr int64_t kKMeansPiece = 512;
constexpr int64_t kMostKMeansClusters = 6144;

/// Positions [begin, end) of one cluster in the order of a head.
struct ClusterPiece {
  int32_t begin = 0, end = 0;
  bool operator==(const ClusterPiece&) const = default;
};

/// What all steps share; arrays are contiguous. A step reads what those before it wrote.
struct KMeansArgs {
  int64_t batch = 0, heads = 0, tokens = 0;
  int64_t clusters = 0;                ///< 1 to kMostKMeansClusters, also more than tokens
  int64_t dim = 0;                     ///< 64 or 128
  HeadRows x;                          ///< [batch, heads, tokens, dim] bf16 or fp16
  const int64_t* valid_len = nullptr;  ///< [batch]: tokens before padding, or null: all
  float* centroid = nullptr;           ///< [batch, heads, clusters, dim], of the range of x's type
  bool has_sums = false;               ///< kmeans_factors makes means first

  void* factors = nullptr;         ///< of x's type [batch, heads, places, 2, dim]
  float* half = nullptr;           ///< [batch, heads, places]
  int32_t* label = nullptr;        ///< [batch, heads, tokens]
  int32_t* order = nullptr;        ///< [batch, heads, tokens]
  int64_t* count = nullptr;        ///< [batch, heads, clusters]
  int64_t* valid = nullptr;        ///< [batch, heads, clusters]
  ClusterPiece* pieces = nullptr;  ///< [batch, heads, most_pieces]
  int32_t* first_piece = nullptr;  ///< [batch, heads, clusters + 1]
  float* sum = nullptr;            ///< [batch, heads, most_pieces, dim]

  /// Clusters, and empty places behind them.
  FOVEA_HD int64_t places() const {
    return (clusters + kKMeansPlaces - 1) / kKMeansPlaces * kKMeansPlaces;
  }
  FOVEA_HD int64_t most_pieces() const { return clusters + tokens / kKMeansPiece; }
  /// Tokens of an item that are not padding, which comes last.
  FOVEA_HD int64_t seen(int64_t item) const {
    if (valid_len == nullptr || valid_len[item] > tokens) return tokens;
    return valid_len[item] > 0 ? valid_len[item] : 0;
  }
};

/// Where a channel lies in a row of `factors`: a thread of the product reads eight channels of a
/// token at once, which are two numbers each of four of its operands.
FOVEA_HD constexpr int64_t kmeans_place(int64_t channel) {
  return channel / 32 * 32 + channel / 4 % 2 * 16 + channel / 2 % 2 * 8 + channel / 8 % 4 * 2 +
         channel % 2;
}

/// With `has_sums` first: centroids become the means of their valid tokens, those of none stay.
/// factors: centroids in two parts of x's type, what is nearest and what is nearest to the rest;
/// half: |c|²/2. Of empty places 0 and +inf.
void kmeans_factors_cpu(const KMeansArgs& args);
Status kmeans_factors_cuda(const KMeansArgs& args, CudaTarget target);

/// label: the cluster with the largest x · factors − half, of equal ones the first. Padding is
/// taken as 0; a token for which no number is the largest is in the first cluster.
void kmeans_labels_cpu(const KMeansArgs& args);
Status kmeans_labels_cuda(const KMeansArgs& args, CudaTarget target);

/// order: the tokens of cluster after cluster, ascending in each; count, and valid without padding;
/// clusters in pieces of up to kKMeansPiece tokens, those of cluster c from first_piece[c] on.
void kmeans_sort_cpu(const KMeansArgs& args);
Status kmeans_sort_cuda(const KMeansArgs& args, CudaTarget target);

/// sum: of the valid tokens of each piece; pieces that are not there are left as they are.
void kmeans_sums_cpu(const KMeansArgs& args);
Status kmeans_sums_cuda(const KMeansArgs& args, CudaTarget target);

}  // namespace fovea::kernels
