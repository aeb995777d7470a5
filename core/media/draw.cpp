#include "core/media/draw.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/media/stroke_font.h"

namespace fovea {
namespace {

constexpr double kUnits = 8;    // of the font's grid, from the base line to a capital's top
constexpr double kSpacing = 2;  // between letters, in units

double unit(const TextStyle& style) { return style.size / kUnits; }

// Bytes of the character that begins a text, as UTF-8 counts them.
size_t character_bytes(std::string_view text) {
  size_t count = 1;
  while (count < text.size() && (static_cast<unsigned char>(text[count]) & 0xC0) == 0x80) ++count;
  return count;
}

struct Letter {
  std::string_view strokes;
  int width;  // units
};

Letter letter_of(std::string_view character) {
  const auto code = static_cast<unsigned char>(character[0]);
  const bool known = code >= ' ' && code <= '~' && character.size() == 1;
  const std::string_view glyph = known ? kStrokeFont[code - ' '] : kUnknownGlyph;
  return {glyph.substr(1), glyph[0] - '0'};
}

int coordinate(char c) { return c <= '9' ? c - '0' : c - 'a' + 10; }

double distance(double x, double y, const std::array<double, 4>& line) {
  const double dx = line[2] - line[0], dy = line[3] - line[1], length = dx * dx + dy * dy;
  const double t =
      length == 0 ? 0 : std::clamp(((x - line[0]) * dx + (y - line[1]) * dy) / length, 0.0, 1.0);
  return std::hypot(x - line[0] - t * dx, y - line[1] - t * dy);
}

}  // namespace

double text_width(std::string_view text, const TextStyle& style) {
  double units = 0;
  while (!text.empty()) {
    const size_t bytes = character_bytes(text);
    units += letter_of(text.substr(0, bytes)).width + kSpacing;
    text.remove_prefix(bytes);
  }
  return std::max(units - kSpacing, 0.0) * unit(style);
}

Canvas::Canvas(int width, int height, Color background) {
  check_picture_size(width, height, "drawing");
  picture_ = make_picture(width, height);
  fill({0, 0, width, height}, background);
}

void Canvas::fill(const Box& box, Color color) {
  const int right = std::min(box.x + box.width, picture_.width);
  const int bottom = std::min(box.y + box.height, picture_.height);
  for (int y = std::max(box.y, 0); y < bottom; ++y) {
    for (int x = std::max(box.x, 0); x < right; ++x) {
      std::copy(color.begin(), color.end(),
                picture_.rgb.begin() + (static_cast<ptrdiff_t>(y) * picture_.width + x) * 3);
    }
  }
}

void Canvas::frame(const Box& box, Color color) {
  fill({box.x, box.y, box.width, 1}, color);
  fill({box.x, box.y + box.height - 1, box.width, 1}, color);
  fill({box.x, box.y, 1, box.height}, color);
  fill({box.x + box.width - 1, box.y, 1, box.height}, color);
}

void Canvas::paste(const Picture& picture, int x, int y) {
  const int left = std::max(x, 0), right = std::min(x + picture.width, picture_.width);
  if (left >= right) return;
  for (int row = std::max(y, 0); row < std::min(y + picture.height, picture_.height); ++row) {
    const auto* from =
        picture.rgb.data() + (static_cast<size_t>(row - y) * picture.width + (left - x)) * 3;
    std::copy(from, from + static_cast<size_t>(right - left) * 3,
              picture_.rgb.begin() + (static_cast<ptrdiff_t>(row) * picture_.width + left) * 3);
  }
}

void Canvas::blend(int x, int y, Color color, double share) {
  if (x < 0 || y < 0 || x >= picture_.width || y >= picture_.height) return;
  uint8_t* pixel = picture_.rgb.data() + (static_cast<size_t>(y) * picture_.width + x) * 3;
  for (size_t c = 0; c < 3; ++c) {
    pixel[c] = static_cast<uint8_t>(std::lround(pixel[c] + share * (color[c] - pixel[c])));
  }
}

void Canvas::stroke(std::array<double, 4> line, double radius, Color color) {
  const double reach = radius + 1;
  const int top = static_cast<int>(std::floor(std::min(line[1], line[3]) - reach));
  const int bottom = static_cast<int>(std::ceil(std::max(line[1], line[3]) + reach));
  const int left = static_cast<int>(std::floor(std::min(line[0], line[2]) - reach));
  const int right = static_cast<int>(std::ceil(std::max(line[0], line[2]) + reach));
  for (int y = top; y <= bottom; ++y) {
    for (int x = left; x <= right; ++x) {
      const double share = radius + 0.5 - distance(x + 0.5, y + 0.5, line);
      if (share > 0) blend(x, y, color, std::min(share, 1.0));
    }
  }
}

void Canvas::text(double x, double y, std::string_view text, const TextStyle& style) {
  const double scale = unit(style);
  const double radius = std::max(0.45, 0.065 * style.size) * (style.bold ? 1.5 : 1);
  while (!text.empty()) {
    const size_t bytes = character_bytes(text);
    const Letter letter = letter_of(text.substr(0, bytes));
    text.remove_prefix(bytes);
    const auto at = [&](size_t i) -> std::array<double, 2> {
      return {x + coordinate(letter.strokes[i]) * scale,
              y + (coordinate(letter.strokes[i + 1]) - kUnits) * scale};
    };
    // Strokes are runs of points; a blank begins the next one, and a single point is a dot.
    for (size_t i = 0; i + 1 < letter.strokes.size(); i += 2) {
      if (letter.strokes[i] == ' ') ++i;
      const bool is_last = i + 3 >= letter.strokes.size() || letter.strokes[i + 2] == ' ';
      const bool is_first = i == 0 || letter.strokes[i - 1] == ' ';
      if (is_last && !is_first) continue;
      const auto from = at(i), to = is_last ? from : at(i + 2);
      stroke({from[0], from[1], to[0], to[1]}, is_last ? radius * 1.3 : radius, style.color);
    }
    x += (letter.width + kSpacing) * scale;
  }
}

void Canvas::text_within(double x, double y, double width, std::string_view text,
                         const TextStyle& style) {
  if (text_width(text, style) <= width) return this->text(x, y, text, style);
  std::string shown;
  while (!text.empty()) {
    const size_t bytes = character_bytes(text);
    const std::string longer = shown + std::string(text.substr(0, bytes));
    if (text_width(longer + "...", style) > width) break;
    shown = longer;
    text.remove_prefix(bytes);
  }
  this->text(x, y, shown + "...", style);
}

}  // namespace fovea
