#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::models {

/// The parts of sentencepiece's ModelProto that a Unigram tokenizer needs.
struct SentencepieceModel {
  enum class Type { normal = 1, unknown = 2, control = 3, user_defined = 4, unused = 5, byte = 6 };
  struct Piece {
    std::string text;
    double score = 0;  ///< an fp32 value
    Type type = Type::normal;
  };
  std::vector<Piece> pieces;
  std::string charsmap;  ///< normalizer_spec.precompiled_charsmap; empty: no normalization
};

/// Reads a `spiece.model`: protocol buffers, wire format of sentencepiece_model.proto. Unknown
/// fields are skipped.
///
/// where   file named in errors
/// throws  Error bad_data with the byte offset for anything that does not fit
SentencepieceModel parse_sentencepiece_model(std::string_view bytes, const std::string& where);

}  // namespace fovea::models
