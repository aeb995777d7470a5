#include "core/media/resize.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/check.h"

namespace fovea {
namespace {

// Weights leave 8 bits for the value and 2 for what negative lobes add to a sum.
constexpr int kFractionBits = 32 - 8 - 2;

double bilinear_weight(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

// Keys' cubic with a = -1/2.
double bicubic_weight(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

double sinc(double x) {
  if (x == 0.0) return 1.0;
  x *= std::numbers::pi;
  return std::sin(x) / x;
}

// sinc windowed by a sinc three times as wide.
double lanczos_weight(double x) { return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0; }

struct Kernel {
  double (*weight)(double);
  double support;
};

Kernel kernel_of(ResizeFilter filter) {
  switch (filter) {
    case ResizeFilter::bilinear:
      return {bilinear_weight, 1.0};
    case ResizeFilter::bicubic:
      return {bicubic_weight, 2.0};
    case ResizeFilter::lanczos:
      return {lanczos_weight, 3.0};
  }
  FOVEA_ASSERT(false, "unknown filter");
}

// The source span of each output position of one axis, and its fixed-point weights.
struct Taps {
  struct Span {
    int first;
    int count;
    size_t offset;  // of its weights
  };
  std::vector<Span> spans;
  std::vector<int32_t> weights;
};

Taps make_taps(int in_size, int out_size, Kernel kernel) {
  const double scale = static_cast<double>(in_size) / out_size;
  const double stretch = std::max(scale, 1.0);
  const double support = kernel.support * stretch;
  const double inverse = 1.0 / stretch;
  Taps taps;
  std::vector<double> weights;
  for (int out = 0; out < out_size; ++out) {
    const double center = (out + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - support + 0.5), 0);
    const int last = std::min(static_cast<int>(center + support + 0.5), in_size);
    weights.clear();
    double total = 0.0;
    for (int x = 0; x < last - first; ++x) {
      weights.push_back(kernel.weight((x + first - center + 0.5) * inverse));
      total += weights.back();
    }
    taps.spans.push_back({first, last - first, taps.weights.size()});
    for (double weight : weights) {
      if (total != 0.0) weight /= total;
      const double fixed = weight * (1 << kFractionBits);
      taps.weights.push_back(static_cast<int32_t>(weight < 0 ? fixed - 0.5 : fixed + 0.5));
    }
  }
  return taps;
}

uint8_t to_byte(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255));
}

constexpr int32_t kHalf = 1 << (kFractionBits - 1);

Picture resize_rows(const Picture& in, int width, Kernel kernel) {
  const Taps taps = make_taps(in.width, width, kernel);
  Picture out = make_picture(width, in.height);
  uint8_t* target = out.rgb.data();
  for (int y = 0; y < in.height; ++y) {
    const uint8_t* row = in.rgb.data() + static_cast<size_t>(y) * in.width * 3;
    for (const Taps::Span& span : taps.spans) {
      const int32_t* weight = taps.weights.data() + span.offset;
      const uint8_t* pixel = row + static_cast<size_t>(span.first) * 3;
      int32_t r = kHalf, g = kHalf, b = kHalf;
      for (int i = 0; i < span.count; ++i, pixel += 3) {
        r += pixel[0] * weight[i];
        g += pixel[1] * weight[i];
        b += pixel[2] * weight[i];
      }
      *target++ = to_byte(r);
      *target++ = to_byte(g);
      *target++ = to_byte(b);
    }
  }
  return out;
}

Picture resize_columns(const Picture& in, int height, Kernel kernel) {
  const Taps taps = make_taps(in.height, height, kernel);
  Picture out = make_picture(in.width, height);
  const size_t row_bytes = static_cast<size_t>(in.width) * 3;
  std::vector<int32_t> sums(row_bytes);
  uint8_t* target = out.rgb.data();
  for (const Taps::Span& span : taps.spans) {
    std::fill(sums.begin(), sums.end(), kHalf);
    for (int i = 0; i < span.count; ++i) {
      const int32_t weight = taps.weights[span.offset + i];
      const uint8_t* row = in.rgb.data() + (span.first + i) * row_bytes;
      for (size_t x = 0; x < row_bytes; ++x) sums[x] += row[x] * weight;
    }
    for (const int32_t sum : sums) *target++ = to_byte(sum);
  }
  return out;
}

}  // namespace

Picture resize(const Picture& picture, int width, int height, ResizeFilter filter) {
  check_picture_size(width, height, "resize");
  FOVEA_ASSERT(picture.rgb.size() == static_cast<size_t>(picture.width) * picture.height * 3);
  const Kernel kernel = kernel_of(filter);
  // Pillow 13 takes the columns first where that leaves clearly less to do; the order shows in the
  // rounding between the passes. The rule was found by comparing sizes around its threshold.
  const int lost_rows = picture.height - height;
  const bool columns_first = lost_rows > 0 && lost_rows > 2 * (picture.width - width);
  Picture out = picture;
  if (columns_first) out = resize_columns(out, height, kernel);
  if (width != picture.width) out = resize_rows(out, width, kernel);
  if (height != out.height) out = resize_columns(out, height, kernel);
  return out;
}

}  // namespace fovea
