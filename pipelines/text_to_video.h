#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/attention.h"
#include "core/progress.h"
#include "core/report.h"
#include "models/dit/wan/wan.h"
#include "models/vae/wan/autoencoder_wan.h"
#include "pipelines/image_to_video.h"
#include "pipelines/model_folder.h"
#include "pipelines/schedulers/scheduler.h"
#include "pipelines/video_request.h"

namespace fovea::pipelines {

/// How a pipeline runs; the same for all its videos.
struct PipelineOptions {
  at::ScalarType dtype = at::kFloat;  ///< transformer and text encoder; the autoencoder stays fp32
  at::Device device = at::kCPU;
  SchedulerChoice scheduler;
  bool vae_tiling = false;          ///< decode in tiles of 256 pixels: less memory, faint seams
  std::string attention = "dense";  ///< planner of the transformer's attention
  Json attention_options = Json::object();
  std::string executor = "auto";  ///< of the transformer's attention, see `pick_executor`
};

/// The place a run has reached: enough to go on bit-identically.
struct DenoiseState {
  int64_t step = 0;   ///< steps done
  TensorMap tensors;  ///< "latents" [1, C, T, H, W] fp32, and the scheduler's
};

struct DenoiseHooks {
  /// Called after every step; may be empty.
  std::function<void(const DenoiseState&)> on_step;
  /// Where to go on; empty = from the noise.
  std::optional<DenoiseState> resume;
  /// Steps of the schedule after which to stop; empty = all.
  std::optional<int64_t> last_step;
};

/// Gets decoded frames as they appear: uint8 [frames, height, width, 3] on the CPU.
using FrameSink = std::function<void(const at::Tensor& frames)>;

/// Text-to-video and image-to-video with a Wan2.1 model folder, the numbers of diffusers'
/// WanPipeline and WanImageToVideoPipeline.
///
/// `prepare` loads the text encoder (and image encoder), encodes all requests, lets the encoders go
/// and loads transformer and autoencoder; so the largest parts are never in memory together and
/// each is loaded once for any number of videos. Not thread-safe.
class VideoPipeline {
 public:
  /// Reads configurations and file headers only.
  /// throws  Error bad_data for a folder, config or weight file that cannot be used
  VideoPipeline(const fs::path& folder, const PipelineOptions& options, Report& report,
                Progress& progress);
  ~VideoPipeline();

  /// Checks a request against this model. throws Error usage naming the option
  void check(const VideoRequest& request) const;
  void prepare(const std::vector<VideoRequest>& requests);
  /// Plans the transformer's attention in another way from here on; calls are counted anew.
  ///
  /// executor  what computes it, by name; empty: the one of the pipeline's options
  /// throws    Error usage for an unknown planner, option or executor
  void set_attention(const std::string& planner, const Json& options,
                     AttentionObserver observer = {}, const std::string& executor = "");

  /// Final latents [1, z_dim, T, H, W], fp32, normalized.
  ///
  /// throws  Error non_finite naming the step, interrupted
  at::Tensor denoise(const VideoRequest& request, const DenoiseHooks& hooks = {});
  /// Decodes latent frame by latent frame into `sink`; memory does not grow with the video.
  void decode(const at::Tensor& latents, const FrameSink& sink);

  const ModelFolder& folder() const { return folder_; }
  const Scheduler& scheduler() const { return *scheduler_; }
  /// Calls per "role: planner on executor", of all networks but the autoencoder.
  std::map<std::string, int64_t> attention_counts() const;

 private:
  struct Files;  // opened weight files, until the models are made

  /// Whether the transformer sees the first frame through the CLIP encoder too.
  bool uses_image_tokens() const {
    return folder_.image_to_video && transformer_config_.image_dim.has_value();
  }
  /// Image encoder and autoencoder run in fp32 whatever the transformer's dtype.
  WeightOptions exact() const { return {.dtype = at::kFloat, .device = options_.device}; }
  void encode_prompts(const std::vector<VideoRequest>& requests);
  void encode_images(const std::vector<VideoRequest>& requests);
  void load_networks();
  at::Tensor initial_latents(const VideoRequest& request) const;
  at::Tensor predict(const VideoRequest& request, const at::Tensor& latents,
                     const at::Tensor& condition, int64_t step);
  std::vector<int64_t> latent_shape(const VideoRequest& request) const;

  ModelFolder folder_;
  PipelineOptions options_;
  Report& report_;
  Progress& progress_;
  std::unique_ptr<Files> files_;
  models::WanConfig transformer_config_;
  models::WanVaeConfig vae_config_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<models::WanTransformer> transformer_;
  std::unique_ptr<models::AutoencoderWan> vae_;
  Attention attention_;                      ///< the transformer's
  Attention encoder_attention_;              ///< of text and pictures
  Attention vae_attention_;                  ///< the autoencoder counts its layers on its own
  std::map<std::string, at::Tensor> text_;   ///< prompt → [1, 512, text_dim], CPU
  std::map<std::string, at::Tensor> image_;  ///< image path → image tokens, CPU
};

}  // namespace fovea::pipelines
