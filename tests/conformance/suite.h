#pragma once

#include <map>
#include <optional>
#include <string>

#include "core/attention/executor.h"
#include "tests/conformance/problems.h"

namespace fovea::test {

/// Something that the suite holds against an executor.
struct Finding {
  std::string rule;  ///< "M1" to "M7", "Q6", "G3", or the name of a probe
  std::string text;  ///< how wrong, and on what problem
};

/// What has been asked of an executor so far.
struct Tally {
  int64_t ran = 0, refused = 0;
  std::map<std::string, int64_t> reasons;  ///< of refusals
  std::map<std::string, int64_t> kinds;    ///< of problems that ran
  std::map<std::string, double> worst;     ///< largest ratio to the bound of each rule

  std::string describe() const;
};

/// What an executor says of itself, beyond being right.
struct Promises {
  bool same_bits_for_any_threads = true;
  bool exact_averages = true;       ///< of ones are 1 within 1 ulp: divides once, in the end
  double allowance = 1;             ///< times what the rules allow
  bool exact_gradients = true;      ///< are held to rule G3
  bool rounds_pooled_keys = false;  ///< to the type of the inputs
};
Promises promises_of(const Executor& executor);

/// Runs a problem as the contract wants it: either a reason why not, or shapes and types, rules M1
/// to M7 or Q1 to Q6, the same bits twice, of one problem in eight with another number of threads
/// too, and nothing changed by what lies in padding and in keys that no query sees (poison). Of
/// softmax plans, one in four and those that are quantized, gradients too (G3): ‖x − r‖ ≤
/// 3 ‖b − r‖ + 1.5 ‖round(r) − r‖ + 2⁻¹⁸ ‖r‖ and what rounding out and lse may do to each.
std::optional<Finding> examine(Executor& executor, const Problem& problem, Tally& tally);

/// A problem of `make_retrieval`: one key after the other, at the ends of the sequence, of blocks
/// and of padding, takes all the mass, and the output is its value; then all logits are equal and
/// all values 1, and so is the output; and values doubled double the output, bit by bit.
std::optional<Finding> examine_retrieval(Executor& executor, const Problem& problem, Tally& tally);

}  // namespace fovea::test
