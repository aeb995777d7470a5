#include "pipelines/train/autoencoder_task.h"

#include <cmath>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/ops/widened.h"
#include "models/vae/wan/autoencoder_wan.h"
#include "pipelines/train/clip_source.h"
#include "pipelines/train/initial_parameters.h"
#include "pipelines/train/model_writer.h"

namespace fovea::pipelines {
namespace {

constexpr const char* kStem = "diffusion_pytorch_model";
constexpr int64_t kStatisticsClips = 256;
constexpr int64_t kPixelsAtOnce = 16 * 17 * 128 * 128;  // that measuring encodes together

models::WanVaeConfig read_config(const TrainConfig& config, const TaskSetup& setup) {
  Config keys = setup.init.empty() ? config.model_config("vae")
                                   : Config::read(setup.init / "vae" / "config.json");
  models::WanVaeConfig out = models::WanVaeConfig::read(keys);
  Report strict(/*strict=*/true);
  if (setup.init.empty()) keys.finish(strict);
  return out;
}

// Mean absolute difference of the neighbours' differences along the last two dimensions.
at::Tensor gradient_difference(const at::Tensor& difference) {
  const at::Tensor down = difference.slice(3, 1) - difference.slice(3, 0, -1);
  const at::Tensor right = difference.slice(4, 1) - difference.slice(4, 0, -1);
  return down.abs().mean() + right.abs().mean();
}

class AutoencoderTask : public TrainingTask {
 public:
  AutoencoderTask(const TrainConfig& config, const TaskSetup& setup, Report& report)
      : config_(config),
        setup_(setup),
        report_(report),
        clips_(config_, setup_),
        vae_config_(read_config(config, setup)),
        parameters_({setup.dtype, setup.device, /*channels_last=*/setup.device.is_cuda()}),
        pools_(clips_.make_pools([this](const ClipBucket& bucket, const auto& numbers) {
          return clips_.render(bucket, numbers);
        })) {
    const auto build = [&](ParameterSource& initial) {
      vae_.emplace(vae_config_, parameters_.component("vae", initial),
                   models::AutoencoderWanOptions{parameters_.options().channels_last});
    };
    if (setup.init.empty()) {
      InitialParameters initial(config.seed);
      build(initial);
    } else {
      WeightFiles files(setup.init / "vae", kStem, {});
      build(files);
      files.finish(report);
    }
    parameters_.finish();
  }

  TrainableParameters& parameters() override { return parameters_; }

  void fill(int64_t step, Progress& progress) override { fill_pools(pools_, step, progress); }

  void prepare(int64_t step) override {
    step_ = step;
    videos_ = pools_[clips_.bucket_of(step)].batch(config_.seed, step).rows;
  }

  at::Tensor loss(int64_t part, int64_t parts) override {
    const int64_t count = videos_.size(0) / parts;
    const at::Tensor video =
        pixels_to_network(videos_.narrow(0, part * count, count), setup_.dtype);
    const models::LatentDistribution latents = vae_->encode(video, attention_);
    const at::Tensor mean = ops::widened(latents.mean);
    const at::Tensor logvar = ops::widened(latents.logvar);
    std::vector<int64_t> shape = mean.sizes().vec();
    shape[0] = videos_.size(0);
    const at::Tensor noise = clips_.noise(step_, shape).narrow(0, part * count, count);
    const at::Tensor sample = mean + at::exp(0.5 * logvar) * noise;
    const at::Tensor difference = decode(sample.to(setup_.dtype)) - ops::widened(video);
    const at::Tensor divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean();
    const AutoencoderLoss& weights = config_.loss;
    return weights.l1 * difference.abs().mean() + weights.mse * difference.square().mean() +
           weights.gradient * gradient_difference(difference) + weights.kl * divergence;
  }

  void save() override {
    const fs::path folder = setup_.out / "vae";
    save_sharded(folder, kStem, to_bf16(parameters_.split(parameters_.master(), "vae")),
                 kShardBytes);
    measure_statistics(load_saved());
    AtomicFile file(folder / "config.json", /*overwrite=*/true);
    file.write(to_json(vae_config_).dump(2) + "\n");
    file.commit();
  }

  // Mean PSNR over clips, from 8-bit pixels, per bucket; in fp32 from the saved weights.
  Json evaluate() override {
    const models::AutoencoderWan saved = load_saved();
    Json out = Json::array();
    const c10::NoGradGuard no_grad;
    for (const ClipBucket& bucket : config_.buckets) {
      double sum = 0, worst = 1e9;
      for_unseen(bucket, config_.evaluation_clips, [&](const at::Tensor& rows) {
        const at::Tensor video = pixels_to_network(rows, at::kFloat);
        const at::Tensor latents = saved.encode(video, attention_).mode();
        const at::Tensor decoded = saved.decode(latents, attention_);
        const at::Tensor pixels = decoded.add(1).mul(127.5).round().clamp(0, 255);
        const at::Tensor target = rows.permute({0, 4, 1, 2, 3}).to(at::kFloat);
        const at::Tensor error =
            (pixels - target).square().mean({1, 2, 3, 4}).clamp_min(1e-3).cpu();
        for (int64_t i = 0; i < error.size(0); ++i) {
          const double psnr = 10 * std::log10(255.0 * 255.0 / error[i].item<double>());
          sum += psnr;
          worst = std::min(worst, psnr);
        }
      });
      out.push_back({{"frames", bucket.frames},
                     {"height", bucket.height},
                     {"width", bucket.width},
                     {"clips", config_.evaluation_clips},
                     {"psnr_mean", sum / static_cast<double>(config_.evaluation_clips)},
                     {"psnr_worst", worst}});
    }
    return {{"reconstruction", out}};
  }

 private:
  // Not clamped: a pixel beyond the range must still find its way back.
  at::Tensor decode(const at::Tensor& latents) {
    models::FeatureCache cache = vae_->decoder_cache();
    return ops::widened(vae_->decode_frames(latents, cache, attention_));
  }

  models::AutoencoderWan load_saved() {
    WeightFiles files(setup_.out / "vae", kStem, {at::kFloat, setup_.device});
    models::AutoencoderWan saved(vae_config_, files, {setup_.device.is_cuda()});
    files.finish(report_);
    return saved;
  }

  template <typename Visit>
  void for_unseen(const ClipBucket& bucket, int64_t count, const Visit& visit) {
    const int64_t pixels = bucket.frames * bucket.height * bucket.width;
    const int64_t together = std::max<int64_t>(1, kPixelsAtOnce / pixels);
    for (int64_t first = 0; first < count; first += together) {
      throw_if_interrupted();
      visit(clips_.render_unseen(bucket, first, std::min(together, count - first)).rows);
    }
  }

  // Mean and standard deviation of each latent channel over unseen clips of all buckets.
  void measure_statistics(const models::AutoencoderWan& saved) {
    const c10::NoGradGuard no_grad;
    at::Tensor sum, squares;
    double count = 0;
    const int64_t buckets = static_cast<int64_t>(config_.buckets.size());
    const int64_t clips = std::min(kStatisticsClips, 4 * config_.evaluation_clips) / buckets;
    for (const ClipBucket& bucket : config_.buckets) {
      for_unseen(bucket, std::max<int64_t>(clips, 1), [&](const at::Tensor& rows) {
        const at::Tensor latents =
            saved.encode(pixels_to_network(rows, at::kFloat), attention_).mode().to(at::kDouble);
        const at::Tensor s = latents.sum({0, 2, 3, 4}), q = latents.square().sum({0, 2, 3, 4});
        sum = sum.defined() ? sum + s : s;
        squares = squares.defined() ? squares + q : q;
        count += static_cast<double>(latents.numel() / latents.size(1));
      });
    }
    const at::Tensor mean = (sum / count).cpu();
    const at::Tensor deviation = (squares.cpu() / count - mean.square()).clamp_min(1e-12).sqrt();
    vae_config_.latents_mean.clear();
    vae_config_.latents_std.clear();
    for (int64_t i = 0; i < vae_config_.z_dim; ++i) {
      vae_config_.latents_mean.push_back(mean[i].item<double>());
      vae_config_.latents_std.push_back(deviation[i].item<double>());
    }
  }

  const TrainConfig& config_;
  TaskSetup setup_;
  Report& report_;
  ClipSource clips_;
  models::WanVaeConfig vae_config_;
  TrainableParameters parameters_;
  std::optional<models::AutoencoderWan> vae_;
  std::vector<ClipPool> pools_;
  Attention attention_;
  int64_t step_ = 0;
  at::Tensor videos_;  // uint8 [clips, frames, height, width, 3]
};

}  // namespace

std::unique_ptr<TrainingTask> make_autoencoder_task(const TrainConfig& config,
                                                    const TaskSetup& setup, Report& report) {
  return std::make_unique<AutoencoderTask>(config, setup, report);
}

}  // namespace fovea::pipelines
