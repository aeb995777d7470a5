#pragma once

#include <array>
#include <string>
#include <string_view>

#include "core/media/picture.h"

namespace fovea {

/// Red, green, blue.
using Color = std::array<uint8_t, 3>;

/// A rectangle of pixels; its right and lower edge are outside of it.
struct Box {
  int x = 0;
  int y = 0;
  int width = 0;
  int height = 0;
};

/// How text looks: a font of strokes, drawn smoothly at any size.
struct TextStyle {
  double size = 9;  ///< height of a capital letter in pixels
  Color color{};
  bool bold = false;
};

/// Pixels from the first stroke of a text to the last one.
///
/// text  UTF-8; of what is not ASCII each character is shown as a box
double text_width(std::string_view text, const TextStyle& style);

/// Draws on a picture; what lies outside of it is left out.
class Canvas {
 public:
  /// throws  Error as `check_picture_size`
  Canvas(int width, int height, Color background);

  void fill(const Box& box, Color color);
  /// The edge of a box, one pixel wide, inside of it.
  void frame(const Box& box, Color color);
  /// A picture with its upper left corner at (x, y).
  void paste(const Picture& picture, int x, int y);
  /// (x, y): left end of the line that the letters stand on.
  void text(double x, double y, std::string_view text, const TextStyle& style);
  /// As `text`, cut with "..." where it is wider than `width` pixels.
  void text_within(double x, double y, double width, std::string_view text, const TextStyle& style);

  const Picture& picture() const { return picture_; }

 private:
  void blend(int x, int y, Color color, double share);
  void stroke(std::array<double, 4> line, double radius, Color color);

  Picture picture_;
};

}  // namespace fovea
