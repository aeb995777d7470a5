#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/predicate.h"

namespace fovea {

/// One side of an attention in the order of a plan: of one item and head, on the host.
struct OrderedSide {
  const TokenLayout& layout;
  std::vector<int64_t> rows;     ///< [seq_len] the row of each position
  std::vector<int64_t> offsets;  ///< [blocks + 1] first positions of blocks

  int64_t size(int64_t block) const {
    const auto at = static_cast<size_t>(block);
    return offsets[at + 1] - offsets[at];
  }
};

/// What a rule compares of tokens of grids. Of an interval: the query's first value and the one
/// behind its last, and the key's value, twice. Of a disc: height and width of both.
struct RuleValues {
  int64_t disc_limit = -1;  ///< of a disc; below 0: an interval
  bool in_order = false;    ///< values are those of positions of the orders, not of rows
  std::array<std::vector<int32_t>, 2> q, kv;
};

/// The rules of predicates that are not stored, as values of all rows; of a window one for each
/// axis.
///
/// throws  Error usage as `visible_pairs`
std::vector<RuleValues> rule_values(const std::vector<Predicate>& predicates,
                                    const TokenLayout& q_layout, const TokenLayout& kv_layout);

/// [seq_len] by row: 1 for tokens that rules do not speak of.
std::vector<uint8_t> outside_of_grids(const TokenLayout& layout);

/// What predicates leave of pairs of blocks. Whether that is nothing or everything follows from the
/// bounds of the blocks wherever it can; only other pairs of blocks are looked at, by one pass over
/// the keys for each different window, column or row of their queries. Nothing of the size of
/// queries times keys is kept but what stored predicates are.
class PairRules {
 public:
  /// stored   bool [q_len, kv_len] by row on the CPU, any strides: those of the predicates that are
  ///          stored, in their order
  /// throws   Error usage as `visible_pairs`
  PairRules(const std::vector<Predicate>& predicates, const OrderedSide& q, const OrderedSide& kv,
            std::vector<at::Tensor> stored);

  enum class Seen { none, some, all };

  /// What pairs of blocks with one block of queries share.
  class Row {
   public:
    Row(const PairRules& rules, int64_t q_block);
    /// Where it is `some`, appends the bits of the pairs: [rows][ceil(keys / 64)].
    Seen take(int64_t kv_block, std::vector<uint64_t>& bits);

   private:
    // The different queries of a rule, and which of them each row of the block has; of rows without
    // place in a grid any.
    struct Cases {
      std::vector<std::array<int32_t, 2>> values;
      std::vector<size_t> of_row;
    };
    Seen from_bounds(int64_t kv_block) const;
    void make_masks(int64_t kv_block, int64_t words);

    const PairRules& rules_;
    int64_t block_;
    std::vector<Cases> cases_;                  // by rule
    std::vector<std::vector<uint64_t>> masks_;  // by rule: [cases][words]
    std::vector<int32_t> first_, width_;        // of a line of a disc
  };

 private:
  // Least and greatest of a rule's values over tokens of grids.
  struct Bounds {
    std::array<int32_t, 2> least, greatest;
  };
  struct Side {
    const OrderedSide& tokens;
    std::vector<uint8_t> outside;             // [seq_len] by position: not in a grid
    std::vector<int64_t> outsiders;           // of each block
    std::vector<std::vector<Bounds>> bounds;  // of each rule and block
  };

  void finish(Side& side, std::array<std::vector<int32_t>, 2> RuleValues::*values) const;
  static Seen seen(const RuleValues& rule, const Bounds& q, const Bounds& kv);

  Side q_, kv_;
  std::vector<RuleValues> rules_;  // by position
  std::vector<at::Tensor> stored_;
};

}  // namespace fovea
