#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "apps/fovea/method_list.h"
#include "core/json.h"
#include "core/metrics.h"

namespace fovea::apps {

/// What one method made of one request.
struct MethodVideo {
  double denoise_seconds = 0;
  double decode_seconds = 0;
  std::optional<double> density;  ///< see AttentionProbe
  std::optional<double> error;
  std::optional<double> recall;
  std::vector<Similarity> frames;   ///< against the dense video
  Json executors = Json::object();  ///< calls per "self: planner on executor"
  std::string file;                 ///< name in the output folder
};

/// One request, by all methods.
struct ComparedVideo {
  std::string name;  ///< files of it begin so
  std::string prompt;
  Json settings;
  std::vector<MethodVideo> methods;
  std::string side_by_side;  ///< file name
  std::string sheet;         ///< file name
};

/// Dense is the first method.
struct Comparison {
  std::vector<Method> methods;
  std::vector<ComparedVideo> videos;
  Json facts = Json::object();  ///< of the run report
};

/// A method over all videos; times are the mean over videos.
struct MethodSummary {
  SimilarityMean similarity;
  std::optional<double> density, error, recall;
  double denoise_seconds = 0, decode_seconds = 0;
  double denoise_speedup = 1, speedup = 1;  ///< dense's time over this one's

  double seconds() const { return denoise_seconds + decode_seconds; }
};

std::vector<MethodSummary> summarize(const Comparison& comparison);

/// Digits after the point; "–" for none, "∞" for infinite.
std::string number(std::optional<double> value, int digits);
/// PSNR, its worst frame's, SSIM likewise, and LPIPS likewise where it was asked for.
std::vector<std::string> quality_cells(const SimilarityMean& similarity);

std::string markdown_of(const Comparison& comparison);
/// One record a method and video, and one a method over all of them.
std::string csv_of(const Comparison& comparison);
Json json_of(const Comparison& comparison);

/// A page that needs nothing but itself: tables, plots, and the videos and sheets of `folder`.
std::string page_of(const Comparison& comparison, const fs::path& folder);

}  // namespace fovea::apps
