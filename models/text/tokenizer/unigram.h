#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "models/text/tokenizer/prefix_matcher.h"

namespace fovea::models {

/// Pieces in id order with their log probabilities.
using ScoredPieces = std::vector<std::pair<std::string, double>>;

/// What a Unigram model is made of.
struct UnigramOptions {
  int64_t unk_id = 0;          ///< piece that stands for text no piece covers
  bool byte_fallback = false;  ///< unknown text becomes pieces "<0x00>" to "<0xFF>" where all exist
};

/// Unigram language model: cuts a word into the pieces of highest total log probability.
///
/// source   Kudo, "Subword Regularization", arXiv 1804.10959; ids as the tokenizers library's
///          Unigram: a character without a piece of its own scores the lowest score minus 10,
///          neighbouring unknown pieces become one
class Unigram {
 public:
  /// where   file named in errors
  /// throws  Error bad_data for an empty vocabulary, a piece that is not UTF-8, a score that is not
  ///         finite, unk_id out of range; resource for a piece above 1,024 bytes
  Unigram(const ScoredPieces& pieces, UnigramOptions options, const std::string& where);

  /// Appends the ids of `word`, valid UTF-8.
  /// cost  linear in the word: each position follows the vocabulary's trie as far as it goes
  void encode(std::string_view word, std::vector<int32_t>& ids) const;
  /// Id of a piece, or -1.
  int32_t id(std::string_view piece) const { return pieces_.find(piece); }
  int64_t size() const { return static_cast<int64_t>(scores_.size()); }

 private:
  void append_text(std::string_view text, std::vector<int32_t>& ids) const;

  PrefixMatcher pieces_;
  std::vector<double> scores_;
  UnigramOptions options_;
  double unknown_score_ = 0;
};

}  // namespace fovea::models
