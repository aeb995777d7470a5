#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace fovea {

/// A run of consecutive tokens that belong together.
struct Segment {
  enum class Kind {
    grid,   ///< frames × height × width tokens, width fastest
    text,   ///< text tokens, padding last
    extra,  ///< class, image, register or other tokens without geometry
  };
  Kind kind = Kind::extra;
  int64_t capacity = 0;             ///< tokens, padding included; known to the host
  std::array<int64_t, 3> grid{};    ///< frames, height, width in tokens; zeros unless kind is grid
  std::array<int64_t, 3> origin{};  ///< position of the first token in the whole video
};

/// What the tokens of a sequence are: the only source of geometry for planners.
class TokenLayout {
 public:
  TokenLayout() = default;

  /// throws Error usage when a size is below 1
  static TokenLayout grid(int64_t frames, int64_t height, int64_t width);
  /// valid_len  int64 [batch] on the device of q, k, v: tokens that are not padding; undefined =
  /// all
  static TokenLayout text(int64_t capacity, at::Tensor valid_len = {});
  static TokenLayout extra(int64_t capacity);
  /// Tokens one after the other: a grid of one row, so that predicates apply; may be empty.
  /// valid_len  as of text
  static TokenLayout sequence(int64_t length, at::Tensor valid_len = {});

  /// The tokens of `other` after those of this layout.
  TokenLayout& append(const TokenLayout& other);

  const std::vector<Segment>& segments() const { return segments_; }
  /// Per segment int64 [batch], or undefined where every token is valid.
  const std::vector<at::Tensor>& valid_len() const { return valid_len_; }
  /// Tokens, padding included.
  int64_t seq_len() const;
  /// Bool [batch, 1, 1, seq_len], true where a token is valid; undefined when all are. No host
  /// sync.
  at::Tensor valid_mask() const;
  /// For example "grid 21x30x52 + text 512".
  std::string describe() const;

 private:
  std::vector<Segment> segments_;
  std::vector<at::Tensor> valid_len_;
};

}  // namespace fovea
