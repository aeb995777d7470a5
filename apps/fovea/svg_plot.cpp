#include "apps/fovea/svg_plot.h"

#include <algorithm>
#include <cmath>

#include "apps/fovea/comparison.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

constexpr double kWidth = 460, kHeight = 250, kLeft = 50, kRight = 16, kTop = 26, kBottom = 40;

// From values to places; marks at round numbers.
class Scale {
 public:
  Scale(double low, double high, double from, double to) : from_(from), to_(to) {
    if (!(high > low)) high = low + 1;
    const double rough = (high - low) / 4, power = std::pow(10, std::floor(std::log10(rough)));
    for (const double part : {1.0, 2.0, 5.0, 10.0}) {
      step_ = part * power;
      if (step_ >= rough) break;
    }
    low_ = std::floor(low / step_) * step_;
    high_ = std::ceil(high / step_) * step_;
  }
  // From the first to the last value, without going on to a round number.
  static Scale exact(double low, double high, double from, double to) {
    Scale out(low, high, from, to);
    out.low_ = low;
    out.high_ = std::max(high, low + 1);
    return out;
  }
  double at(double value) const { return from_ + (value - low_) / (high_ - low_) * (to_ - from_); }
  std::vector<double> marks() const {
    std::vector<double> out;
    const auto count = std::lround(std::floor((high_ - low_) / step_ + 1e-9));
    for (long i = 0; i <= count; ++i) out.push_back(low_ + static_cast<double>(i) * step_);
    return out;
  }
  std::string text(double value) const {
    const int digits = step_ >= 1 ? 0 : static_cast<int>(std::ceil(-std::log10(step_) - 1e-9));
    return number(value, digits);
  }

 private:
  double from_, to_, low_ = 0, high_ = 1, step_ = 1;
};

struct Range {
  double low = INFINITY, high = -INFINITY;
  void add(double value) {
    if (!std::isfinite(value)) return;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  bool empty() const { return low > high; }
};

std::string text_at(double x, double y, const char* anchor, const std::string& text) {
  return str("<text x='", number(x, 1), "' y='", number(y, 1), "' text-anchor='", anchor, "'>",
             escaped(text), "</text>");
}

std::string begin_svg(double height, const std::string& name) {
  return str("<svg class='plot' viewBox='0 0 ", kWidth, " ", height, "' role='img' aria-label='",
             escaped(name), "'>");
}

// Grid, numbers and names of a plot with two axes.
std::string axes(const Scale& x, const Scale& y, const std::string& x_name,
                 const std::string& y_name) {
  std::string out;
  for (const double mark : y.marks()) {
    const std::string at = number(y.at(mark), 1);
    out += str("<path class='grid' d='M", kLeft, " ", at, "H", kWidth - kRight, "'/>");
    out += text_at(kLeft - 7, y.at(mark) + 4, "end", y.text(mark));
  }
  for (const double mark : x.marks()) {
    out += text_at(x.at(mark), kHeight - kBottom + 17, "middle", x.text(mark));
  }
  out += text_at((kLeft + kWidth - kRight) / 2, kHeight - 5, "middle", x_name);
  return out + text_at(4, 13, "start", y_name);
}

std::string nothing_to_draw(const std::string& name) {
  return begin_svg(60, name) + text_at(kWidth / 2, 34, "middle", "every frame is equal to dense") +
         "</svg>";
}

}  // namespace

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string line_plot(const std::vector<Series>& series, const std::string& x_name,
                      const std::string& y_name) {
  Range range;
  size_t longest = 1;
  for (const Series& line : series) {
    longest = std::max(longest, line.values.size());
    for (const double value : line.values) range.add(value);
  }
  if (range.empty()) return nothing_to_draw(y_name);
  const Scale x = Scale::exact(0, static_cast<double>(longest - 1), kLeft, kWidth - kRight);
  const Scale y(range.low, range.high, kHeight - kBottom, kTop);
  std::string out = begin_svg(kHeight, y_name) + axes(x, y, x_name, y_name);
  for (const Series& line : series) {
    std::string path;
    bool down = false;
    for (size_t i = 0; i < line.values.size(); ++i) {
      const bool shown = std::isfinite(line.values[i]);
      if (shown) {
        path += str(down ? "L" : "M", number(x.at(static_cast<double>(i)), 1), " ",
                    number(y.at(line.values[i]), 1));
      }
      down = shown;
    }
    out += str("<path class='line c", line.color, "' d='", path, "'><title>", escaped(line.label),
               "</title></path>");
  }
  return out + "</svg>";
}

std::string point_plot(const std::vector<Series>& series, const std::string& x_name,
                       const std::string& y_name) {
  Range right, up;
  for (const Series& point : series) {
    if (!std::isfinite(point.values[1])) continue;
    right.add(point.values[0]);
    up.add(point.values[1]);
  }
  if (up.empty()) return nothing_to_draw(y_name);
  right.add(1);  // as fast as dense
  const Scale x(right.low, right.high, kLeft, kWidth - kRight);
  const Scale y(up.low, up.high, kHeight - kBottom, kTop);
  std::string out = begin_svg(kHeight, y_name) + axes(x, y, x_name, y_name);
  out += str("<path class='grid strong' d='M", number(x.at(1), 1), " ", kTop, "V",
             kHeight - kBottom, "'/>");
  for (const Series& point : series) {
    if (!std::isfinite(point.values[1])) continue;
    out +=
        str("<circle class='dot c", point.color, "' r='6' cx='", number(x.at(point.values[0]), 1),
            "' cy='", number(y.at(point.values[1]), 1), "'><title>", escaped(point.label), ": ",
            number(point.values[0], 2), ", ", number(point.values[1], 2), "</title></circle>");
  }
  return out + "</svg>";
}

std::string bar_plot(const std::vector<Series>& series, const std::vector<std::string>& parts,
                     const std::string& unit) {
  constexpr double kBar = 18, kPitch = 42, kEnd = kWidth - 88;
  double longest = 1e-9;
  for (const Series& bar : series) {
    double sum = 0;
    for (const double value : bar.values) sum += value;
    longest = std::max(longest, sum);
  }
  std::string out = begin_svg(kPitch * static_cast<double>(series.size()) + 4, unit);
  for (size_t i = 0; i < series.size(); ++i) {
    const double y = kPitch * static_cast<double>(i);
    out += text_at(2, y + 13, "start", series[i].label);
    double sum = 0;
    for (size_t part = 0; part < series[i].values.size(); ++part) {
      const double value = series[i].values[part];
      out += str("<rect class='bar c", series[i].color, " part", part, "' x='",
                 number(2 + sum / longest * kEnd, 1), "' y='", y + 18, "' width='",
                 number(value / longest * kEnd, 1), "' height='", kBar, "'><title>", parts[part],
                 " ", number(value, 2), " ", unit, "</title></rect>");
      sum += value;
    }
    out += text_at(8 + sum / longest * kEnd, y + 32, "start", number(sum, 2) + " " + unit);
  }
  return out + "</svg>";
}

}  // namespace fovea::apps
