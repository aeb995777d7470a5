#include "models/text/tokenizer/unigram.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <limits>

#include "core/check.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {
namespace {

// Bounds the work per character of input.
constexpr size_t kMaxPieceBytes = 1024;
constexpr double kUnknownPenalty = 10.0;

}  // namespace

Unigram::Unigram(const ScoredPieces& pieces, UnigramOptions options, const std::string& where)
    : options_(options) {
  require(!pieces.empty(), ErrorCode::bad_data, where, "the vocabulary is empty");
  require(pieces.size() <= std::numeric_limits<int32_t>::max(), ErrorCode::resource, where,
          "the vocabulary has ", pieces.size(), " pieces");
  require(options.unk_id >= 0 && options.unk_id < static_cast<int64_t>(pieces.size()),
          ErrorCode::bad_data, where, "unk_id: expected an id below ", pieces.size(), ", got ",
          options.unk_id);
  std::vector<std::pair<std::string, int32_t>> entries;
  entries.reserve(pieces.size());
  scores_.reserve(pieces.size());
  double lowest = std::numeric_limits<double>::infinity();
  for (const auto& [text, score] : pieces) {
    const auto id = static_cast<int32_t>(entries.size());
    require(text.size() <= kMaxPieceBytes, ErrorCode::resource, where, "piece ", id, " has ",
            text.size(), " bytes, at most ", kMaxPieceBytes, " are read");
    require(invalid_utf8_offset(text) == std::string::npos, ErrorCode::bad_data, where, "piece ",
            id, ": expected valid UTF-8");
    require(std::isfinite(score), ErrorCode::bad_data, where, "piece ", id,
            ": score is not finite");
    entries.emplace_back(text, id);
    scores_.push_back(score);
    lowest = std::min(lowest, score);
  }
  pieces_ = PrefixMatcher(std::move(entries));
  unknown_score_ = lowest - kUnknownPenalty;
}

void Unigram::encode(std::string_view word, std::vector<int32_t>& ids) const {
  struct BestEnd {
    double score = 0;
    int64_t begin = -1;  // where the last piece of the best path begins; -1: not reached
    int32_t id = 0;
  };
  std::vector<BestEnd> best(word.size() + 1);
  for (size_t begin = 0; begin < word.size(); begin += utf8_length(word[begin])) {
    const size_t character = utf8_length(word[begin]);
    const double score_here = best[begin].score;
    bool has_single = false;
    const auto offer = [&](size_t length, double score, int64_t id) {
      BestEnd& end = best[begin + length];
      if (end.begin >= 0 && score_here + score <= end.score) return;
      end = {score_here + score, static_cast<int64_t>(begin), static_cast<int32_t>(id)};
    };
    pieces_.each_prefix(word.substr(begin), [&](size_t length, int32_t id) {
      offer(length, scores_[static_cast<size_t>(id)], id);
      has_single |= length == character;
    });
    if (!has_single) offer(character, unknown_score_, options_.unk_id);
  }
  // Back along the best path; neighbouring unknown pieces are joined.
  std::vector<std::string_view> parts;
  bool joining = false;
  for (size_t end = word.size(); end > 0;) {
    const auto begin = static_cast<size_t>(best[end].begin);
    const bool unknown = best[end].id == options_.unk_id;
    if (unknown && joining) {
      parts.back() = word.substr(begin, parts.back().size() + end - begin);
    } else {
      parts.push_back(word.substr(begin, end - begin));
    }
    joining = unknown;
    end = begin;
  }
  for (auto part = parts.rbegin(); part != parts.rend(); ++part) append_text(*part, ids);
}

void Unigram::append_text(std::string_view text, std::vector<int32_t>& ids) const {
  const int32_t known = pieces_.find(text);
  if (known >= 0) {
    ids.push_back(known);
    return;
  }
  if (options_.byte_fallback) {
    std::vector<int32_t> bytes;
    for (char byte : text) {
      std::array<char, 8> name{};
      std::snprintf(name.data(), name.size(), "<0x%02X>", static_cast<unsigned char>(byte));
      bytes.push_back(pieces_.find(name.data()));
    }
    if (std::find(bytes.begin(), bytes.end(), -1) == bytes.end()) {
      ids.insert(ids.end(), bytes.begin(), bytes.end());
      return;
    }
  }
  ids.push_back(static_cast<int32_t>(options_.unk_id));
}

}  // namespace fovea::models
