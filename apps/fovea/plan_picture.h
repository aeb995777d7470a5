#pragma once

#include <string>
#include <vector>

#include "core/attention/plan_map.h"
#include "core/media/draw.h"

namespace fovea::apps {

/// Heads whose maps are equal.
struct HeadClass {
  std::vector<int64_t> heads;
  PlanMap map;

  /// "heads 0-3, 7"
  std::string name() const;
};

/// A plan as it is to be shown.
struct PlanView {
  std::string title;               ///< the method
  std::vector<std::string> notes;  ///< lines below it
  TokenLayout q_layout, kv_layout;
  bool in_rows = false;  ///< positions are rows: frames lie one after the other
  std::vector<HeadClass> classes;
  std::vector<Summary> summaries;
};

std::vector<HeadClass> head_classes(const std::vector<PlanMap>& maps, int64_t heads);

/// A panel for each class of heads, twelve at most: blocks of queries downwards, of keys to the
/// right; the density of each row and column of blocks in its margins; borders of segments; frames
/// as ticks; a legend.
Picture draw_plan(const PlanView& view);

}  // namespace fovea::apps
