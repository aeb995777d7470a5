#include "core/token_layout.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {

TokenLayout TokenLayout::grid(int64_t frames, int64_t height, int64_t width) {
  require(frames >= 1 && height >= 1 && width >= 1, ErrorCode::usage, "token layout",
          "grid sizes must be at least 1, got ", frames, "x", height, "x", width);
  int64_t area = 0, tokens = 0;
  const bool counts = !__builtin_mul_overflow(height, width, &area) &&
                      !__builtin_mul_overflow(frames, area, &tokens);
  require(counts, ErrorCode::usage, "token layout", "a grid of ", frames, "x", height, "x", width,
          " has too many tokens");
  TokenLayout out;
  out.segments_.push_back({Segment::Kind::grid, tokens, {frames, height, width}, {}});
  out.valid_len_.emplace_back();
  return out;
}

TokenLayout TokenLayout::text(int64_t capacity, at::Tensor valid_len) {
  require(capacity >= 0, ErrorCode::usage, "token layout", "negative capacity ", capacity);
  TokenLayout out;
  out.segments_.push_back({Segment::Kind::text, capacity, {}, {}});
  out.valid_len_.push_back(std::move(valid_len));
  return out;
}

TokenLayout TokenLayout::extra(int64_t capacity) {
  require(capacity >= 0, ErrorCode::usage, "token layout", "negative capacity ", capacity);
  TokenLayout out;
  out.segments_.push_back({Segment::Kind::extra, capacity, {}, {}});
  out.valid_len_.emplace_back();
  return out;
}

TokenLayout TokenLayout::sequence(int64_t length, at::Tensor valid_len) {
  TokenLayout out = length == 0 ? extra(0) : grid(1, 1, length);
  out.valid_len_[0] = std::move(valid_len);
  return out;
}

TokenLayout& TokenLayout::append(const TokenLayout& other) {
  int64_t tokens = 0;
  require(!__builtin_add_overflow(seq_len(), other.seq_len(), &tokens), ErrorCode::usage,
          "token layout", describe(), " + ", other.describe(), " has too many tokens");
  segments_.insert(segments_.end(), other.segments_.begin(), other.segments_.end());
  valid_len_.insert(valid_len_.end(), other.valid_len_.begin(), other.valid_len_.end());
  return *this;
}

int64_t TokenLayout::seq_len() const {
  int64_t total = 0;
  for (const Segment& segment : segments_) total += segment.capacity;
  return total;
}

at::Tensor TokenLayout::valid_mask() const {
  at::Tensor reference;
  for (const at::Tensor& lengths : valid_len_) {
    if (lengths.defined()) reference = lengths;
  }
  if (!reference.defined()) return {};
  std::vector<at::Tensor> parts;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const at::Tensor position = at::arange(segments_[i].capacity, reference.options());
    const at::Tensor length =
        valid_len_[i].defined() ? valid_len_[i] : at::full_like(reference, segments_[i].capacity);
    parts.push_back(position.unsqueeze(0) < length.unsqueeze(1));
  }
  return at::cat(parts, 1).unsqueeze(1).unsqueeze(1);
}

std::string TokenLayout::describe() const {
  std::string out;
  for (const Segment& segment : segments_) {
    if (!out.empty()) out += " + ";
    if (segment.kind == Segment::Kind::grid) {
      out += str("grid ", segment.grid[0], "x", segment.grid[1], "x", segment.grid[2]);
    } else {
      out += str(segment.kind == Segment::Kind::text ? "text " : "extra ", segment.capacity);
    }
  }
  return out;
}

}  // namespace fovea
