#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "core/attention/plan.h"
#include "core/json.h"
#include "core/weights.h"

namespace fovea {

/// A plan as text that `plan_from_json` makes an equal plan of, and its tensors beside it, under
/// the names that the text refers to. What a plan holds is in it bit for bit; of tensors not their
/// device, strides and gradients.
///
///   "planner"             its name
///   "q_order", "kv_order" {"kind": "identity"}, {"kind": "tiles", "tile": [4, 8, 8]},
///                         {"kind": "axes", "axes": ["FHW", ..]} or {"kind": "index", "rows": NAME}
///   "branches"            an array; each has "kind", "group", and what `plan.h` says of the kind
///   "group_weights"       an array of NAME or null
/// Blocks are {"sizes": [[count, size], ..]}, or {"offsets": NAME, "max_size": N} where only the
/// device knows them; class maps {"tensor": NAME, "bits": B} and stored predicates are packed, see
/// `pack_bits`.
///
/// tensors  gets the plan's tensors, on the CPU
/// throws   Error usage for a plan whose class map is not of its blocks, or has a class of a
/// summary
///          that is not there
Json to_json(const AttentionPlan& plan, TensorMap& tensors);

/// where   file named in errors
/// throws  Error bad_data naming the key or the tensor: unknown keys, wrong types, tensors that are
///         not there or of another type or shape. `validate` and `check_data` say whether the plan
///         goes with a call
AttentionPlan plan_from_json(const Json& json, const TensorMap& tensors, const std::string& where);

/// An order of the axes from the slowest to the fastest as letters: F frames, H height, W width.
std::string axes_name(const std::array<int64_t, 3>& axes);
/// The inverse; nothing for another text.
std::optional<std::array<int64_t, 3>> axes_from_name(const std::string& name);

}  // namespace fovea
