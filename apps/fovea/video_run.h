#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/fovea/generate_options.h"
#include "apps/fovea/prompt_list.h"
#include "core/attention/plan_recipe.h"
#include "core/media/rational.h"
#include "core/media/video_writer.h"
#include "core/progress.h"
#include "core/report.h"
#include "pipelines/text_to_video.h"

namespace fovea::apps {

/// What commands that make videos share: device, model, progress and report of one run, from the
/// same options.
class VideoRun {
 public:
  /// Reads the model's configurations and checks all requests; loads no weights yet.
  ///
  /// jobs    their requests get the tensor of --latents
  /// throws  Error usage, bad_data
  VideoRun(const GenerateOptions& options, std::vector<Job>& jobs);

  /// Writes down what is known before the first video.
  void start_report(const std::vector<Job>& jobs);
  /// Encodes the prompts and loads the networks.
  void prepare(const std::vector<Job>& jobs);
  /// What is known at the end.
  void end_report();

  /// Everything that decides a video's file; kept inside it and compared by --resume.
  Json settings(const Job& job, const PlanRecipe& attention) const;
  /// Options of a file that holds the job's video.
  VideoOptions video_options(const Job& job, const PlanRecipe& attention) const;
  /// Decodes final latents frame by frame, each [height, width, 3].
  void decode(const at::Tensor& latents, const std::function<void(std::span<const uint8_t>)>& sink);

  /// What --attention, --attention-preset and --attn say.
  const PlanRecipe& attention() const { return attention_; }
  const std::string& fingerprint() const { return fingerprint_; }  ///< of the model's files
  pipelines::VideoPipeline& pipeline() { return *pipeline_; }
  Report& report() { return report_; }
  Progress& progress() { return *progress_; }
  at::Device device() const { return device_; }
  const Rational& fps() const { return fps_; }

 private:
  pipelines::PipelineOptions pipeline_options() const;
  void load_latents(std::vector<Job>& jobs);

  const GenerateOptions& options_;
  PlanRecipe attention_;
  Rational fps_;
  at::Device device_;
  Report report_;
  std::unique_ptr<Progress> progress_;
  std::optional<pipelines::VideoPipeline> pipeline_;
  std::string fingerprint_;
};

/// Writes a whole text file. throws as AtomicFile
void write_text(const fs::path& path, const std::string& text, bool overwrite = false);

/// JSON with what is no UTF-8 replaced.
std::string json_text(const Json& json, int indent = -1);

}  // namespace fovea::apps
