#include "apps/fovea/plan_picture.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "core/check.h"

namespace fovea::apps {
namespace {

constexpr Color kPage = {250, 251, 252}, kText = {23, 27, 34}, kDim = {93, 102, 116};
constexpr Color kSkip = {228, 232, 238}, kExact = {36, 99, 235}, kBorder = {190, 30, 60};
constexpr Color kBar = {126, 148, 186}, kTick = {150, 158, 170};
constexpr std::array<Color, 3> kSummaries = {{{240, 140, 40}, {248, 196, 84}, {252, 226, 160}}};
constexpr int kSide = 440;  // pixels of a map, about
constexpr int kStrip = 46;  // of the densities beside and below it
constexpr int kTicks = 8, kPad = 24, kHead = 46;
constexpr int kMaxPanels = 12, kColumns = 3;

Color mix(Color a, Color b, double share) {
  Color out;
  for (size_t c = 0; c < 3; ++c) {
    out[c] = static_cast<uint8_t>(std::lround(a[c] + share * (b[c] - a[c])));
  }
  return out;
}

std::string text_of(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f", value);
  return text;
}

// One side of a map: which pixels a block has. Many blocks share a pixel, or a block has several.
struct Axis {
  std::vector<int64_t> offsets;
  int pixels = 0;

  explicit Axis(const std::vector<int64_t>& all) : offsets(all) {
    const int64_t count = std::max<int64_t>(blocks(), 1);
    pixels = count >= kSide ? kSide : static_cast<int>(kSide / count * count);
  }
  int64_t blocks() const { return static_cast<int64_t>(offsets.size()) - 1; }
  int at_block(int64_t block) const {
    return static_cast<int>(block * pixels / std::max<int64_t>(blocks(), 1));
  }
  // The place of a token, between the edges of its block.
  double at_token(int64_t token) const {
    const auto next = std::upper_bound(offsets.begin(), offsets.end() - 1, token);
    const auto block = std::max<int64_t>(next - offsets.begin() - 1, 0);
    const auto size =
        static_cast<double>(std::max<int64_t>(offsets[block + 1] - offsets[block], 1));
    const double inside = std::min(static_cast<double>(token - offsets[block]) / size, 1.0);
    return (static_cast<double>(block) + inside) * pixels /
           static_cast<double>(std::max<int64_t>(blocks(), 1));
  }
};

class Panel {
 public:
  Panel(const PlanView& view, const HeadClass& shown)
      : view_(view), class_(shown), q_(shown.map.q_offsets), kv_(shown.map.kv_offsets) {}

  int width() const { return kTicks + kv_.pixels + 8 + kStrip; }
  int height() const { return kHead + q_.pixels + 8 + kStrip; }

  void draw(Canvas& canvas, int x, int y) const {
    const PlanMap& map = class_.map;
    canvas.text_within(x, y + 11, width(), class_.name(),
                       {.size = 10, .color = kText, .bold = true});
    canvas.text(x, y + 29, "density " + text_of(map.density), {.size = 9, .color = kDim});
    const int left = x + kTicks, top = y + kHead;
    draw_map(canvas, left, top);
    draw_densities(canvas, left, top);
    draw_layout(canvas, left, top);
  }

 private:
  Color color_of(int64_t i, int64_t j) const {
    const size_t at = static_cast<size_t>(i * kv_.blocks() + j);
    const uint8_t value = class_.map.classes[at];
    if (value == block_class::skip) return kSkip;
    // A block of which little is seen must not look like one that is skipped.
    if (value == block_class::exact) return mix(kSkip, kExact, 0.3 + 0.7 * class_.map.seen[at]);
    return kSummaries[std::min<size_t>(value - block_class::first_summary, kSummaries.size() - 1)];
  }

  void draw_map(Canvas& canvas, int left, int top) const {
    const int64_t nq = q_.blocks(), nk = kv_.blocks();
    for (int row = 0; row < q_.pixels; ++row) {
      const int64_t i = row * nq / q_.pixels;
      const int64_t i_end = std::max(i + 1, (row + 1) * nq / q_.pixels);
      for (int column = 0; column < kv_.pixels; ++column) {
        const int64_t j = column * nk / kv_.pixels;
        const int64_t j_end = std::max(j + 1, (column + 1) * nk / kv_.pixels);
        std::array<double, 3> sum{};
        for (int64_t a = i; a < i_end; ++a) {
          for (int64_t b = j; b < j_end; ++b) {
            const Color color = color_of(a, b);
            for (size_t c = 0; c < 3; ++c) sum[c] += color[c];
          }
        }
        const auto count = static_cast<double>((i_end - i) * (j_end - j));
        Color mean;
        for (size_t c = 0; c < 3; ++c) mean[c] = static_cast<uint8_t>(std::lround(sum[c] / count));
        canvas.fill({left + column, top + row, 1, 1}, mean);
      }
    }
    // With few blocks their edges help to count them.
    if (std::max(nq, nk) <= 56) {
      for (int64_t i = 1; i < nq; ++i)
        canvas.fill({left, top + q_.at_block(i), kv_.pixels, 1}, kPage);
      for (int64_t j = 1; j < nk; ++j)
        canvas.fill({left + kv_.at_block(j), top, 1, q_.pixels}, kPage);
    }
  }

  // The share of a block's pairs with all queries that is computed: of a summary, its pooled keys.
  std::vector<double> column_density() const {
    const PlanMap& map = class_.map;
    std::vector<double> out(static_cast<size_t>(kv_.blocks()), 0);
    const auto rows = static_cast<double>(std::max<int64_t>(q_.offsets.back(), 1));
    for (int64_t i = 0; i < q_.blocks(); ++i) {
      const double share = static_cast<double>(q_.offsets[i + 1] - q_.offsets[i]) / rows;
      for (int64_t j = 0; j < kv_.blocks(); ++j) {
        const uint8_t value = map.classes[static_cast<size_t>(i * kv_.blocks() + j)];
        if (value == block_class::skip) continue;
        double part = 1;
        if (value >= block_class::first_summary) {
          const int64_t size = std::max<int64_t>(kv_.offsets[j + 1] - kv_.offsets[j], 1);
          const int64_t pool = view_.summaries[value - block_class::first_summary].pool;
          const int64_t pooled = pool == 0 ? 1 : (size + pool - 1) / pool;
          part = static_cast<double>(pooled) / static_cast<double>(size);
        }
        out[static_cast<size_t>(j)] += share * part;
      }
    }
    return out;
  }

  void draw_densities(Canvas& canvas, int left, int top) const {
    const int right = left + kv_.pixels + 8, bottom = top + q_.pixels + 8;
    for (int row = 0; row < q_.pixels; ++row) {
      const double density =
          class_.map.row_density[static_cast<size_t>(row * q_.blocks() / q_.pixels)];
      canvas.fill({right, top + row, static_cast<int>(std::lround(density * kStrip)), 1}, kBar);
    }
    const std::vector<double> columns = column_density();
    for (int column = 0; column < kv_.pixels; ++column) {
      const double density = columns[static_cast<size_t>(column * kv_.blocks() / kv_.pixels)];
      const int length = static_cast<int>(std::lround(density * kStrip));
      canvas.fill({left + column, bottom, 1, length}, kBar);
    }
    canvas.fill({right + kStrip, top, 1, q_.pixels}, kTick);  // density 1
    canvas.fill({left, bottom + kStrip, kv_.pixels, 1}, kTick);
    canvas.text(right + kStrip - 3, top - 4, "1", {.size = 7, .color = kDim});
    canvas.text(right, bottom + kStrip, "1", {.size = 7, .color = kDim});
  }

  void draw_layout(Canvas& canvas, int left, int top) const {
    mark(canvas, view_.kv_layout, kv_, [&](int at, bool border) {
      canvas.fill({left + at, border ? top : top - 4, 1, border ? q_.pixels : 4},
                  border ? kBorder : kTick);
    });
    mark(canvas, view_.q_layout, q_, [&](int at, bool border) {
      canvas.fill({border ? left : left - 4, top + at, border ? kv_.pixels : 4, 1},
                  border ? kBorder : kTick);
    });
  }

  // Calls line(pixel, is a border of segments) for borders, and frames where they follow each
  // other.
  template <typename Line>
  void mark(Canvas&, const TokenLayout& layout, const Axis& axis, const Line& line) const {
    int64_t first = 0;
    for (const Segment& segment : layout.segments()) {
      if (first > 0) line(static_cast<int>(std::lround(axis.at_token(first))), true);
      const bool has_frames = segment.kind == Segment::Kind::grid && view_.in_rows;
      for (int64_t f = 0; has_frames && segment.grid[0] <= 64 && f <= segment.grid[0]; ++f) {
        const int64_t token = first + f * segment.grid[1] * segment.grid[2];
        line(static_cast<int>(std::lround(axis.at_token(token))), false);
      }
      first += segment.capacity;
    }
  }

  const PlanView& view_;
  const HeadClass& class_;
  Axis q_, kv_;
};

// What is drawn in which colour, as far as a plan has it.
void draw_legend(Canvas& canvas, int x, int y, const PlanView& view) {
  const TextStyle style{.size = 9, .color = kText};
  const auto entry = [&](Color color, const std::string& text) {
    canvas.fill({x, y - 11, 14, 14}, color);
    canvas.text(x + 20, y, text, style);
    x += 20 + static_cast<int>(text_width(text, style)) + 24;
  };
  bool partial = false, borders = view.kv_layout.segments().size() > 1;
  for (const HeadClass& shown : view.classes) {
    for (size_t at = 0; at < shown.map.classes.size(); ++at) {
      partial |= shown.map.classes[at] == block_class::exact && shown.map.seen[at] < 1;
    }
  }
  entry(kSkip, "skip");
  entry(kExact, "exact");
  if (partial) entry(mix(kSkip, kExact, 0.5), "exact, seen in part");
  for (size_t i = 0; i < view.summaries.size(); ++i) {
    const int64_t pool = view.summaries[i].pool;
    entry(kSummaries[std::min(i, kSummaries.size() - 1)],
          pool == 0 ? std::string("summary of a block") : str("summary of ", pool, " keys"));
  }
  entry(kBar, "density of rows and columns");
  if (borders) entry(kBorder, "border of segments");
}

}  // namespace

std::string HeadClass::name() const {
  std::string out = heads.size() == 1 ? "head " : "heads ";
  for (size_t i = 0; i < heads.size();) {
    size_t end = i;
    while (end + 1 < heads.size() && heads[end + 1] == heads[end] + 1) ++end;
    if (i > 0) out += ", ";
    out += str(heads[i]);
    if (end > i) out += str("-", heads[end]);
    i = end + 1;
  }
  return out;
}

std::vector<HeadClass> head_classes(const std::vector<PlanMap>& maps, int64_t heads) {
  std::vector<HeadClass> out;
  for (int64_t head = 0; head < heads; ++head) {
    const PlanMap& map = maps[maps.size() == 1 ? 0 : static_cast<size_t>(head)];
    const auto same = std::find_if(out.begin(), out.end(),
                                   [&](const HeadClass& known) { return known.map == map; });
    if (same == out.end()) {
      out.push_back({{head}, map});
    } else {
      same->heads.push_back(head);
    }
  }
  return out;
}

Picture draw_plan(const PlanView& view) {
  const int shown = std::min<int>(static_cast<int>(view.classes.size()), kMaxPanels);
  const int columns = std::min(shown, kColumns), rows = (shown + columns - 1) / columns;
  std::vector<Panel> panels;
  int width = 0, height = 0;
  for (int i = 0; i < shown; ++i) {
    panels.emplace_back(view, view.classes[static_cast<size_t>(i)]);
    width = std::max(width, panels.back().width());
    height = std::max(height, panels.back().height());
  }
  std::vector<std::string> notes = view.notes;
  if (static_cast<int>(view.classes.size()) > shown) {
    notes.push_back(str("the first ", shown, " of ", view.classes.size(), " different maps"));
  }
  const int top = kPad + 22 + 18 * static_cast<int>(notes.size()) + 14;
  const int page_width = std::max(columns * (width + kPad) + kPad, 720);
  Canvas canvas(page_width, top + rows * (height + kPad) + 30, kPage);
  const double room = page_width - 2 * kPad;
  canvas.text_within(kPad, kPad + 12, room, view.title, {.size = 13, .color = kText, .bold = true});
  for (size_t i = 0; i < notes.size(); ++i) {
    canvas.text_within(kPad, kPad + 36 + 18 * static_cast<double>(i), room, notes[i],
                       {.size = 9, .color = kDim});
  }
  for (int i = 0; i < shown; ++i) {
    panels[static_cast<size_t>(i)].draw(canvas, kPad + i % columns * (width + kPad),
                                        top + i / columns * (height + kPad));
  }
  draw_legend(canvas, kPad, top + rows * (height + kPad) + 10, view);
  return canvas.picture();
}

}  // namespace fovea::apps
