#pragma once

#include "core/attention/call.h"
#include "core/attention/plan.h"

namespace fovea {

/// Reads what of a plan is in CPU tensors and refuses by name what lies: orders that are no
/// permutations, offsets that do not ascend from 0 to the number of positions or exceed their
/// largest block, classes of summaries that are not there, weights, biases and stored bits that do
/// not broadcast. Executors may index by them unchecked. For plans from outside; what planners make
/// is right by construction. Tensors on other devices are not read.
///
/// throws  Error bad_data
void check_data(const AttentionPlan& plan, const AttentionCall& call);

}  // namespace fovea
