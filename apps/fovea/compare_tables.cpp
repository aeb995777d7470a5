#include <cmath>
#include <cstdio>

#include "apps/fovea/comparison.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

// The mean of what is known of all videos.
class OptionalMean {
 public:
  void add(std::optional<double> value) {
    if (!value) complete_ = false;
    sum_ += value.value_or(0), ++count_;
  }
  std::optional<double> value() const {
    if (!complete_ || count_ == 0) return std::nullopt;
    return sum_ / count_;
  }

 private:
  double sum_ = 0;
  int count_ = 0;
  bool complete_ = true;
};

MethodSummary summary_of(const Comparison& comparison, size_t method) {
  MethodSummary out;
  OptionalMean density, error, recall;
  const auto count = static_cast<double>(comparison.videos.size());
  for (const ComparedVideo& video : comparison.videos) {
    const MethodVideo& made = video.methods[method];
    for (const Similarity& frame : made.frames) out.similarity.add(frame);
    density.add(made.density);
    error.add(made.error);
    recall.add(made.recall);
    out.denoise_seconds += made.denoise_seconds / count;
    out.decode_seconds += made.decode_seconds / count;
  }
  out.density = density.value();
  out.error = error.value();
  out.recall = recall.value();
  return out;
}

Json number_or_null(std::optional<double> value) {
  return value && std::isfinite(*value) ? Json(*value) : Json(nullptr);
}

Json record(const MethodSummary& summary) {
  const SimilarityMean& similarity = summary.similarity;
  Json out;
  out["identical"] = similarity.worst_ssim() == 1 && std::isinf(similarity.worst_psnr());
  out["psnr_db"] = number_or_null(similarity.psnr());
  out["worst_psnr_db"] = number_or_null(similarity.worst_psnr());
  out["ssim"] = similarity.ssim();
  out["worst_ssim"] = similarity.worst_ssim();
  if (const auto lpips = similarity.lpips()) {
    out["lpips"] = *lpips;
    out["worst_lpips"] = *similarity.worst_lpips();
  }
  out["attention_density"] = number_or_null(summary.density);
  out["attention_error"] = number_or_null(summary.error);
  out["attention_recall"] = number_or_null(summary.recall);
  out["denoise_seconds"] = summary.denoise_seconds;
  out["decode_seconds"] = summary.decode_seconds;
  out["seconds"] = summary.seconds();
  out["denoise_speedup"] = summary.denoise_speedup;
  out["speedup"] = summary.speedup;
  return out;
}

// The comparison of one of its videos alone.
Comparison only(const Comparison& comparison, const ComparedVideo& video) {
  return {comparison.methods, {video}, comparison.facts};
}

std::string quoted(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string out = "\"";
  for (const char c : text) out += c == '"' ? "\"\"" : std::string(1, c);
  return out + "\"";
}

std::string csv_rows(const Comparison& comparison, const std::string& video,
                     const std::string& device) {
  std::string out;
  const std::vector<MethodSummary> summaries = summarize(comparison);
  for (size_t m = 0; m < summaries.size(); ++m) {
    out += quoted(comparison.methods[m].label) + "," + quoted(video);
    const Json values = record(summaries[m]);
    for (const auto& [key, value] : values.items()) {
      out += "," + (value.is_null() ? std::string() : value.dump());
    }
    out += "," + quoted(device) + "\n";
  }
  return out;
}

}  // namespace

std::vector<MethodSummary> summarize(const Comparison& comparison) {
  std::vector<MethodSummary> out;
  for (size_t m = 0; m < comparison.methods.size(); ++m) {
    out.push_back(summary_of(comparison, m));
    MethodSummary& made = out.back();
    made.denoise_speedup = out[0].denoise_seconds / std::max(made.denoise_seconds, 1e-9);
    made.speedup = out[0].seconds() / std::max(made.seconds(), 1e-9);
  }
  return out;
}

std::string number(std::optional<double> value, int digits) {
  if (!value) return "–";
  if (std::isinf(*value)) return "∞";
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, *value);
  return text;
}

std::vector<std::string> quality_cells(const SimilarityMean& similarity) {
  std::vector<std::string> out = {number(similarity.psnr(), 2), number(similarity.worst_psnr(), 2),
                                  number(similarity.ssim(), 4), number(similarity.worst_ssim(), 4)};
  if (similarity.lpips()) {
    out.push_back(number(similarity.lpips(), 4));
    out.push_back(number(similarity.worst_lpips(), 4));
  }
  return out;
}

std::string markdown_of(const Comparison& comparison) {
  const std::vector<MethodSummary> summaries = summarize(comparison);
  const bool lpips = summaries[0].similarity.lpips().has_value();
  std::string out = str("| method | PSNR dB | worst frame | SSIM | worst frame ",
                        lpips ? "| LPIPS | worst frame " : "",
                        "| density | error | recall | denoise s | decode s | all s "
                        "| denoise speed-up | speed-up |\n| --- ");
  for (int column = 0; column < (lpips ? 14 : 12); ++column) out += "| ---: ";
  out += "|\n";
  for (size_t m = 0; m < summaries.size(); ++m) {
    const MethodSummary& made = summaries[m];
    out += "| " + comparison.methods[m].label;
    std::vector<std::string> cells = quality_cells(made.similarity);
    for (const auto& [value, digits] : {std::pair(made.density, 3),
                                        {made.error, 3},
                                        {made.recall, 3},
                                        {made.denoise_seconds, 2},
                                        {made.decode_seconds, 2},
                                        {made.seconds(), 2},
                                        {made.denoise_speedup, 2},
                                        {made.speedup, 2}}) {
      cells.push_back(number(value, digits));
    }
    for (const std::string& cell : cells) out += " | " + cell;
    out += " |\n";
  }
  return out;
}

std::string csv_of(const Comparison& comparison) {
  std::string out = "method,video";
  const Json columns = record(summarize(comparison).front());
  for (const auto& [key, value] : columns.items()) out += "," + key;
  out += ",device\n";
  const std::string device = comparison.facts.value("device", "");
  out += csv_rows(comparison, "all", device);
  for (const ComparedVideo& video : comparison.videos) {
    out += csv_rows(only(comparison, video), video.name, device);
  }
  return out;
}

Json json_of(const Comparison& comparison) {
  Json out = comparison.facts;
  const std::vector<MethodSummary> summaries = summarize(comparison);
  out["methods"] = Json::array();
  for (size_t m = 0; m < summaries.size(); ++m) {
    const Method& method = comparison.methods[m];
    Json entry = {{"method", method.label},
                  {"attention", method.attention.planner},
                  {"attention_options", method.attention.options}};
    entry.update(record(summaries[m]));
    out["methods"].push_back(entry);
  }
  out["videos"] = Json::array();
  for (const ComparedVideo& video : comparison.videos) {
    Json entry = {{"name", video.name},
                  {"settings", video.settings},
                  {"side_by_side", video.side_by_side},
                  {"contact_sheet", video.sheet},
                  {"methods", Json::array()}};
    const std::vector<MethodSummary> own = summarize(only(comparison, video));
    for (size_t m = 0; m < own.size(); ++m) {
      const MethodVideo& made = video.methods[m];
      Json row = {{"method", comparison.methods[m].label}, {"file", made.file}};
      row.update(record(own[m]));
      row["executors"] = made.executors;
      for (const Similarity& frame : made.frames) {
        row["frame_psnr_db"].push_back(number_or_null(frame.psnr()));
        row["frame_ssim"].push_back(frame.ssim);
        if (frame.lpips) row["frame_lpips"].push_back(*frame.lpips);
      }
      entry["methods"].push_back(row);
    }
    out["videos"].push_back(entry);
  }
  return out;
}

}  // namespace fovea::apps
