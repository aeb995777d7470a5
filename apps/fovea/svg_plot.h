#pragma once

#include <string>
#include <vector>

namespace fovea::apps {

/// Values of one method, shown in its colour: number i of the page's.
struct Series {
  std::string label;
  size_t color = 0;
  std::vector<double> values;  ///< infinite ones are left out
};

/// How values go on over frames: a line a series, drawn as SVG.
std::string line_plot(const std::vector<Series>& series, const std::string& x_name,
                      const std::string& y_name);

/// A point a series of values[0] to the right and values[1] upwards.
std::string point_plot(const std::vector<Series>& series, const std::string& x_name,
                       const std::string& y_name);

/// A bar a series, of its values one after the other; `parts` are their names.
std::string bar_plot(const std::vector<Series>& series, const std::vector<std::string>& parts,
                     const std::string& unit);

/// Text for HTML and SVG.
std::string escaped(const std::string& text);

}  // namespace fovea::apps
