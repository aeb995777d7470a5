#pragma once

#include <array>
#include <filesystem>
#include <string>
#include <vector>

#include "core/attention/planner.h"
#include "core/config.h"

namespace fovea {

/// PAROAttention (Zhao et al., 2025, sections 3 and 4): each head sorts the axes of the grid anew,
/// so that its pattern becomes blocks; static masks of these blocks, one for some steps at a time;
/// INT8 with a scale per block. Other segments stay where they are, and see and are seen by all.
///
/// options  file       a plan file, see below; default: no masks
///          axes       order of the axes from the slowest to the fastest, F frames, H height, W
///                     width, or layers of them as in the file, where that has none; default "FHW"
///          block      tokens of a block; default 64, or the file's
///          precision  "int8" (default): q, k and v with a scale per block, weights with one per
///                     pair of blocks; "int8_qk": q and k only; "storage": none
///
/// A plan file is a JSON object:
///   "block"    as above
///   "axes"     an array of layers, each an array of orders such as "HWF": one for each head of
///              keys, or one for all; a single layer stands for all
///   "masks"    name of a safetensors file in the same folder, or absent
///   "layout"   with masks: the layout that they are for, such as "grid 21x45x80 + text 226"
///   "buckets"  with masks: into how many parts of equal length the steps are cut; default 10
/// Masks are tensors "layer.L.bucket.B" of bytes [heads or 1, q blocks, ceil(kv blocks / 8)]; block
/// j is bit j mod 8 of byte j div 8. A bucket without one takes that of the last bucket before it
/// that has one; without any the layer sees everything.
///
/// throws  Error bad_data for a plan file that cannot be read or holds something else; usage when
///         a call's layout, layers or heads are not the file's
class ParoPlanner : public Planner {
 public:
  explicit ParoPlanner(Config& options);
  std::string name() const override { return "paro"; }
  std::string cache_key(const AttentionCall& call) const override;
  /// The orders of all heads, without the masks.
  PlanRecipe recipe(const Json& options) const override;
  AttentionPlan plan(const AttentionCall& call) override;

 private:
  using Axes = std::array<int64_t, 3>;

  void read(const std::filesystem::path& path);
  void read_axes(Config& from);
  const std::vector<Axes>& axes_of(const AttentionCall& call) const;
  /// uint8 [1, heads or 1, q blocks, kv blocks] on the CPU, or undefined.
  at::Tensor mask_of(const AttentionCall& call, const Selection& selection) const;

  int64_t block_, buckets_ = 10;
  std::vector<std::vector<Axes>> axes_ = {{{0, 1, 2}}};  // by layer; one for all
  std::string layout_;
  std::filesystem::path masks_;  // empty: none
  Precision precision_;
};

}  // namespace fovea
