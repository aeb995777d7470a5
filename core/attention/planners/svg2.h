#pragma once

#include <map>
#include <tuple>
#include <vector>

#include "core/attention/planner.h"
#include "core/attention/planners/kmeans.h"
#include "core/config.h"

namespace fovea {

/// Sparse VideoGen 2 (Yang et al., 2025, section 4): queries and keys of the grid are sorted by
/// meaning, each side on its own and each head by itself: k-means, whose clusters are the blocks.
/// A cluster of keys weighs count · exp(scaled product of the centroids); of each cluster of
/// queries the heaviest clusters of keys are kept until they hold the share `top_p`. Other segments
/// stay where they are, as one block each, and see and are seen by all.
///
/// Centroids are kept from step to step for each layer, guidance branch and item, and improved a
/// little at each. A step that comes a second time is planned from what the first one began with,
/// an earlier step than the last begins anew.
///
/// options  top_p             share of the weight that is kept, the cluster that passes it
///                            included; default 0.9
///          min_kept          share of the clusters of keys that are kept at least; default 0.1
///          q_clusters        default: one for 256 tokens of the grid
///          kv_clusters       default: one for 76 tokens
///          iterations        of k-means in the beginning; default 50
///          later_iterations  with centroids of an earlier step; default 2
///
/// differs  The released code begins with tokens drawn with replacement, stops early when centroids
///          rest (which the host would have to read), and hands centroids from one guidance branch
///          to the other.
class Svg2Planner : public Planner {
 public:
  explicit Svg2Planner(Config& options);
  std::string name() const override { return "svg2"; }
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  enum class Which { queries, keys };
  // What is kept of one side: the centroids before and after its last step, per grid.
  struct Kept {
    int64_t step = 0;
    std::vector<at::Tensor> before, after;
  };
  // One side sorted: its order, its blocks, and which of the blocks are clusters.
  struct Sorted {
    TokenOrder order;
    BlockAxis blocks;
    at::Tensor centroid, valid;  // of all clusters; [batch, heads, clusters, dim], [.., clusters]
    std::vector<int64_t> cluster_blocks;
  };
  Sorted sorted(const AttentionCall& call, Which which);
  Clusters cluster(const at::Tensor& x, const at::Tensor& valid_len, int64_t stream, Which which,
                   at::Tensor& centroids) const;

  double top_p_, min_kept_;
  int64_t clusters_[2], iterations_, later_iterations_;
  std::map<std::tuple<AttentionRole, int64_t, GuidanceBranch, Which>, Kept> kept_;
};

}  // namespace fovea
