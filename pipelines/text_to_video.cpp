#include "pipelines/text_to_video.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include "core/check.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/interrupt.h"
#include "core/media/picture.h"
#include "models/text/tokenizer/tokenizer.h"
#include "models/text/umt5/umt5_encoder.h"
#include "models/vit/clip_vision/clip_vision.h"
#include "models/vit/clip_vision/image_processor.h"
#include "pipelines/guidance.h"
#include "pipelines/image_input.h"

namespace fovea::pipelines {
namespace {

constexpr int64_t kTextLength = 512;  // tokens the transformer's cross-attention sees

// One worker's share of progress: a stage that ends itself.
class Stage {
 public:
  Stage(Progress& progress, const std::string& name, int64_t total) : progress_(progress) {
    progress_.begin(name, total);
  }
  ~Stage() { progress_.end(); }
  void update(int64_t done) { progress_.update(done); }

 private:
  Progress& progress_;
};

// A picture the right way up, as diffusers' load_image gives it.
Picture upright_picture(const fs::path& path) {
  return oriented(read_picture(path), probe_picture(path).orientation);
}

}  // namespace

// Every weight file is opened, and so checked, before the first large tensor is read.
struct VideoPipeline::Files {
  WeightFiles text_encoder;
  WeightFiles transformer;
  WeightFiles vae;
};

VideoPipeline::VideoPipeline(const fs::path& folder, const PipelineOptions& options, Report& report,
                             Progress& progress)
    : folder_(ModelFolder::open(folder, report)),
      options_(options),
      report_(report),
      progress_(progress),
      attention_(options.attention, options.attention_options, options.executor) {
  Config transformer = folder_.config("transformer");
  transformer_config_ = models::WanConfig::read(transformer);
  transformer.finish(report);
  Config vae = folder_.config("vae");
  vae_config_ = models::WanVaeConfig::read(vae);
  vae.finish(report);
  Config scheduler = folder_.config("scheduler", "scheduler_config.json");
  scheduler_ = make_scheduler(scheduler, options.scheduler, report);
  const int64_t condition =
      folder_.image_to_video ? vae_config_.z_dim + vae_config_.scale_factor_temporal : 0;
  require(transformer_config_.in_channels == vae_config_.z_dim + condition, ErrorCode::bad_data,
          transformer.where(), "key 'in_channels': expected ", vae_config_.z_dim + condition,
          " for the autoencoder's z_dim, got ", transformer_config_.in_channels);
  require(
      !uses_image_tokens() || folder_.has_image_encoder, ErrorCode::bad_data, transformer.where(),
      "key 'image_dim': the transformer takes image tokens, but the folder has no image_encoder");
  if (transformer_config_.pos_embed_seq_len) {
    transformer.refuse("pos_embed_seq_len", "first-and-last-frame models are not supported");
  }
  const WeightOptions cast{.dtype = options.dtype, .device = options.device};
  files_ = std::make_unique<Files>(
      Files{WeightFiles(folder_.component("text_encoder"), "model", cast),
            WeightFiles(folder_.component("transformer"), "diffusion_pytorch_model", cast),
            WeightFiles(folder_.component("vae"), "diffusion_pytorch_model", exact())});
  if (uses_image_tokens()) {
    const WeightFiles checked_now_loaded_later(folder_.component("image_encoder"), "model",
                                               exact());
  }
}

VideoPipeline::~VideoPipeline() = default;

std::map<std::string, int64_t> VideoPipeline::attention_counts() const {
  std::map<std::string, int64_t> counts = attention_.counts();
  for (const auto& [kind, calls] : encoder_attention_.counts()) counts[kind] += calls;
  return counts;
}

void VideoPipeline::set_attention(const std::string& planner, const Json& options,
                                  AttentionObserver observer, const std::string& executor) {
  attention_ = Attention(planner, options, executor.empty() ? options_.executor : executor);
  attention_.set_observer(std::move(observer));
}

void VideoPipeline::check(const VideoRequest& request) const {
  check_request(request);
  const int64_t temporal = vae_config_.scale_factor_temporal;
  require(request.num_frames % temporal == 1 % temporal, ErrorCode::usage, "--num-frames",
          "expected ", temporal, "k + 1, got ", request.num_frames);
  const int64_t frames = (request.num_frames - 1) / temporal + 1;
  const auto& patch = transformer_config_.patch_size;
  require(frames % patch[0] == 0, ErrorCode::usage, "--num-frames", frames,
          " latent frames are no multiple of the patch of ", patch[0]);
  const int64_t spatial = vae_config_.scale_factor_spatial;
  require(request.height % (spatial * patch[1]) == 0, ErrorCode::usage, "--height",
          "expected a multiple of ", spatial * patch[1], ", got ", request.height);
  require(request.width % (spatial * patch[2]) == 0, ErrorCode::usage, "--width",
          "expected a multiple of ", spatial * patch[2], ", got ", request.width);
  const int64_t limit = transformer_config_.rope_max_seq_len;
  require(frames / patch[0] <= limit && request.height / (spatial * patch[1]) <= limit &&
              request.width / (spatial * patch[2]) <= limit,
          ErrorCode::usage, "--num-frames",
          "the token grid has a side above the model's rope_max_seq_len = ", limit);
  require(folder_.image_to_video || request.image.empty(), ErrorCode::usage, "--image",
          "this is a text-to-video model");
  require(!folder_.image_to_video || !request.image.empty(), ErrorCode::usage, "--image",
          "an image-to-video model needs a first frame");
  if (request.latents.defined()) {
    const std::vector<int64_t> shape = latent_shape(request);
    require(request.latents.sizes() == at::IntArrayRef(shape), ErrorCode::bad_data, "--latents",
            "expected shape ", at::IntArrayRef(shape), ", got ", request.latents.sizes());
  }
}

std::vector<int64_t> VideoPipeline::latent_shape(const VideoRequest& request) const {
  return {1, vae_config_.z_dim, (request.num_frames - 1) / vae_config_.scale_factor_temporal + 1,
          request.height / vae_config_.scale_factor_spatial,
          request.width / vae_config_.scale_factor_spatial};
}

void VideoPipeline::prepare(const std::vector<VideoRequest>& requests) {
  guarded("prepare", [&] {
    const c10::InferenceMode inference;
    encode_prompts(requests);
    if (uses_image_tokens()) encode_images(requests);
    load_networks();
  });
}

void VideoPipeline::encode_prompts(const std::vector<VideoRequest>& requests) {
  progress_.begin("load_text_encoder", 1);
  const auto tokenizer =
      models::Tokenizer::open(folder_.component("tokenizer"), folder_.tokenizer_class);
  Config config = folder_.config("text_encoder");
  const auto text_config = models::Umt5Config::read(config, report_, folder_.text_encoder_class);
  require(text_config.d_model == transformer_config_.text_dim, ErrorCode::bad_data, config.where(),
          "key 'd_model': expected the transformer's text_dim = ", transformer_config_.text_dim,
          ", got ", text_config.d_model);
  const models::Umt5Encoder encoder(text_config, files_->text_encoder);
  models::Umt5Encoder::ignore_spare(files_->text_encoder);
  files_->text_encoder.finish(report_);
  progress_.end();

  std::vector<std::string> prompts;
  for (const VideoRequest& request : requests) {
    prompts.push_back(request.prompt);
    if (guidance_active(request.guidance_scale)) prompts.push_back(request.negative_prompt);
  }
  Stage stage(progress_, "encode_text", static_cast<int64_t>(prompts.size()));
  for (size_t i = 0; i < prompts.size(); ++i) {
    throw_if_interrupted();
    if (text_.count(prompts[i]) == 0) {
      text_[prompts[i]] =
          encoder.encode(tokenizer, {prompts[i]}, kTextLength, encoder_attention_).to(at::kCPU);
    }
    stage.update(static_cast<int64_t>(i) + 1);
  }
}

void VideoPipeline::encode_images(const std::vector<VideoRequest>& requests) {
  Stage stage(progress_, "encode_image", static_cast<int64_t>(requests.size()));
  const auto encoder =
      models::load_clip_vision(folder_.component("image_encoder"), exact(), report_);
  const auto processor =
      models::load_clip_image_processor(folder_.component("image_processor"), report_);
  for (size_t i = 0; i < requests.size(); ++i) {
    throw_if_interrupted();
    const std::string key = requests[i].image.string();
    if (image_.count(key) == 0) {
      const at::Tensor pixels = processor.process(upright_picture(requests[i].image));
      image_[key] =
          encoder.next_to_last(pixels.to(options_.device), encoder_attention_).to(at::kCPU);
    }
    stage.update(static_cast<int64_t>(i) + 1);
  }
}

void VideoPipeline::load_networks() {
  {
    Stage stage(progress_, "load_transformer", 1);
    transformer_ =
        std::make_unique<models::WanTransformer>(transformer_config_, files_->transformer);
    // Older conversions hold a norm that no version of the network uses.
    for (int64_t i = 0; i < transformer_config_.num_layers; ++i) {
      files_->transformer.ignore(str("blocks.", i, ".attn2.norm_added_q.weight"));
    }
    files_->transformer.finish(report_);
  }
  Stage stage(progress_, "load_vae", 1);
  vae_ = std::make_unique<models::AutoencoderWan>(
      vae_config_, files_->vae,
      models::AutoencoderWanOptions{.channels_last = options_.device.is_cuda()});
  files_->vae.finish(report_);
  synchronize(options_.device);
}

at::Tensor VideoPipeline::initial_latents(const VideoRequest& request) const {
  if (request.latents.defined()) return request.latents.to(at::kFloat);
  auto generator = at::detail::createCPUGenerator(request.seed);
  return at::randn(latent_shape(request), generator, at::TensorOptions().dtype(at::kFloat));
}

at::Tensor VideoPipeline::predict(const VideoRequest& request, const at::Tensor& latents,
                                  const at::Tensor& condition, int64_t step) {
  const at::ScalarType dtype = transformer_->dtype();
  StepContext context{.step = step,
                      .num_steps = scheduler_->num_steps(),
                      .timestep = scheduler_->timestep_values()[static_cast<size_t>(step)],
                      .guidance_branch = GuidanceBranch::conditional};
  models::WanInputs inputs;
  inputs.latents = (condition.defined() ? at::cat({latents, condition}, 1) : latents).to(dtype);
  inputs.timestep = scheduler_->timesteps().slice(0, step, step + 1).to(options_.device);
  inputs.text = text_.at(request.prompt).to(options_.device, dtype);
  if (uses_image_tokens())
    inputs.image = image_.at(request.image.string()).to(options_.device, dtype);
  const at::Tensor prediction = transformer_->forward(inputs, context, attention_);
  if (!guidance_active(request.guidance_scale)) return prediction;
  context.guidance_branch = GuidanceBranch::unconditional;
  inputs.text = text_.at(request.negative_prompt).to(options_.device, dtype);
  return guide(prediction, transformer_->forward(inputs, context, attention_),
               request.guidance_scale);
}

at::Tensor VideoPipeline::denoise(const VideoRequest& request, const DenoiseHooks& hooks) {
  return guarded("denoise", [&] {
    const c10::InferenceMode inference;
    FOVEA_ASSERT(transformer_ && text_.count(request.prompt) == 1,
                 "prepare() must see the request first");
    at::Tensor condition;
    if (folder_.image_to_video) {
      Stage stage(progress_, "encode_first_frame", 1);
      const at::Tensor image =
          picture_to_tensor(upright_picture(request.image), request.height, request.width);
      condition = make_image_condition(image.to(options_.device), request.num_frames, *vae_,
                                       vae_attention_);
    }
    scheduler_->set_timesteps(request.num_steps);
    at::Tensor latents;
    int64_t first = 0;
    if (hooks.resume) {
      first = hooks.resume->step;
      latents = hooks.resume->tensors.at("latents").to(options_.device);
      scheduler_->load_state(hooks.resume->tensors, options_.device, "resume state");
    } else {
      latents = initial_latents(request).to(options_.device);
    }
    const int64_t last =
        std::min(hooks.last_step.value_or(scheduler_->num_steps()), scheduler_->num_steps());
    Stage stage(progress_, "denoise", last);
    for (int64_t step = first; step < last; ++step) {
      throw_if_interrupted();
      latents = scheduler_->step(predict(request, latents, condition, step), step, latents);
      require(at::isfinite(latents).all().item<bool>(), ErrorCode::non_finite,
              folder_.path.string(), "latents hold NaN or Inf after step ", step + 1, " of ",
              scheduler_->num_steps());
      if (hooks.on_step) {
        DenoiseState state{.step = step + 1, .tensors = scheduler_->state()};
        state.tensors["latents"] = latents;
        hooks.on_step(state);
      }
      stage.update(step + 1);
    }
    return latents.to(at::kFloat);
  });
}

void VideoPipeline::decode(const at::Tensor& latents, const FrameSink& sink) {
  guarded("decode", [&] {
    const c10::InferenceMode inference;
    const at::Tensor z = vae_->denormalize(latents.to(options_.device, at::kFloat));
    const int64_t frames = z.size(2);
    Stage stage(progress_, "decode", frames);
    const auto tiling =
        options_.vae_tiling ? std::make_optional<models::VaeTiling>() : std::nullopt;
    models::WanVaeDecoder decoder(*vae_, vae_attention_, tiling);
    for (int64_t i = 0; i < frames; ++i) {
      throw_if_interrupted();
      const at::Tensor video = decoder.push(z.slice(2, i, i + 1));
      const at::Tensor pixels =
          (video.select(0, 0) / 2 + 0.5).clamp(0, 1).mul(255).round().to(at::kByte);
      sink(pixels.permute({1, 2, 3, 0}).contiguous().to(at::kCPU));
      stage.update(i + 1);
    }
  });
}

}  // namespace fovea::pipelines
