#include "pipelines/train/transformer_task.h"

#include <cctype>
#include <cmath>
#include <set>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/ops/widened.h"
#include "models/dit/wan/wan.h"
#include "models/text/tokenizer/prompt_clean.h"
#include "models/text/tokenizer/tokenizer.h"
#include "models/text/umt5/umt5_encoder.h"
#include "models/vae/wan/autoencoder_wan.h"
#include "pipelines/model_folder.h"
#include "pipelines/train/clip_source.h"
#include "pipelines/train/draw.h"
#include "pipelines/train/initial_parameters.h"
#include "pipelines/train/model_writer.h"
#include "pipelines/train/output_folder.h"

namespace fovea::pipelines {
namespace {

constexpr const char* kStem = "diffusion_pytorch_model";
constexpr double kTimesteps = 1000;                     // the network's time of pure noise
constexpr int64_t kPixelsAtOnce = 16 * 17 * 128 * 128;  // that the autoencoder encodes together
constexpr double kCapitals = 0.1;                       // share of captions that begin with one
constexpr int64_t kUnseenSteps = 1 << 30;               // steps whose draws training never makes

// Latents of some clips, the noise they are mixed with, and their texts.
struct FlowBatch {
  at::Tensor latents;      // [clips, channels, frames, height, width]
  at::Tensor noise;        // the same, fp32
  at::Tensor noise_level;  // [clips] fp32
  at::Tensor ids;          // int64 [clips, tokens]
  at::Tensor valid_len;    // int64 [clips]

  FlowBatch part(int64_t first, int64_t count) const {
    return {latents.narrow(0, first, count), noise.narrow(0, first, count),
            noise_level.narrow(0, first, count), ids.narrow(0, first, count),
            valid_len.narrow(0, first, count)};
  }
};

class TransformerTask : public TrainingTask {
 public:
  TransformerTask(const TrainConfig& config, const TaskSetup& setup, Report& report)
      : config_(config),
        setup_(setup),
        report_(report),
        clips_(config_, setup_),
        parameters_({setup.dtype, setup.device}),
        pools_(clips_.make_pools([this](const ClipBucket& bucket, const auto& numbers) {
          return encode(bucket, clips_.render(bucket, numbers));
        })) {
    // The output folder is written to when all that may be wrong with the others was read.
    const bool is_new = setup_.init.empty();
    if (!is_new) ModelFolder::open(setup_.init, report_);
    load_autoencoder();
    if (is_new && setup_.rank == 0) write_new_folder(setup_.out, clips_.world().words(), config_);
    tokenizer_.emplace(models::Tokenizer::open(source() / "tokenizer"));
    build_networks();
    parameters_.finish();
    if (!is_new && setup_.rank == 0) copy_rest();
  }

  TrainableParameters& parameters() override { return parameters_; }

  void fill(int64_t step, Progress& progress) override { fill_pools(pools_, step, progress); }

  void prepare(int64_t step) override {
    const size_t index = clips_.bucket_of(step);
    const ClipBucket& bucket = config_.buckets[index];
    batch_ = make_batch(bucket, pools_[index].batch(config_.seed, step), step);
    step_ = step;
  }

  at::Tensor loss(int64_t part, int64_t parts) override {
    const int64_t count = batch_.latents.size(0) / parts;
    return flow_loss(batch_.part(part * count, count));
  }

  void save() override {
    const at::Tensor& row = parameters_.master();
    save_sharded(setup_.out / "transformer", kStem, to_bf16(parameters_.split(row, "transformer")),
                 kShardBytes);
    save_sharded(setup_.out / "text_encoder", "model",
                 to_bf16(parameters_.split(row, "text_encoder")), kShardBytes);
  }

  // Loss on unseen clips per bucket, with the parameters as they are.
  Json evaluate() override {
    const c10::NoGradGuard no_grad;
    Json out = Json::array();
    for (const ClipBucket& bucket : config_.buckets) {
      double sum = 0;
      const int64_t columns = clips_.columns(bucket);
      const int64_t rounds = std::max<int64_t>(1, config_.evaluation_clips / columns);
      for (int64_t i = 0; i < rounds; ++i) {
        throw_if_interrupted();
        const PooledClips seen = clips_.render_unseen(bucket, i * columns, columns);
        sum += flow_loss(make_batch(bucket, encode(bucket, seen), kUnseenSteps + i)).item<double>();
      }
      out.push_back({{"frames", bucket.frames},
                     {"height", bucket.height},
                     {"width", bucket.width},
                     {"clips", rounds * columns},
                     {"loss", sum / static_cast<double>(rounds)}});
    }
    return {{"unseen", out}};
  }

 private:
  // The folder that the networks are built from.
  const fs::path& source() const { return setup_.init.empty() ? setup_.out : setup_.init; }

  // Whether the output folder's autoencoder was trained there: then it comes before the one of the
  // folder that training starts from.
  bool has_own_autoencoder() const {
    return fs::exists(setup_.out / "training" / "autoencoder.safetensors") &&
           fs::exists(setup_.out / "vae" / "config.json");
  }

  // The output folder gets all that is not trained here.
  void copy_rest() const {
    std::set<std::string> kept = {"training"};
    if (has_own_autoencoder()) kept.insert("vae");
    copy_model_folder(setup_.init, setup_.out, kept, {"transformer", "text_encoder"});
  }

  void load_autoencoder() {
    const fs::path folder = (has_own_autoencoder() ? setup_.out : source()) / "vae";
    require(fs::is_regular_file(folder / "config.json"), ErrorCode::bad_data, folder.string(),
            "holds no autoencoder: run the stage autoencoder first, or start from a folder");
    Config keys = Config::read(folder / "config.json");
    const models::WanVaeConfig sizes = models::WanVaeConfig::read(keys);
    WeightFiles files(folder, kStem, {setup_.dtype, setup_.device});
    vae_.emplace(sizes, files,
                 models::AutoencoderWanOptions{.channels_last = setup_.device.is_cuda(),
                                               .frames_at_once = true});
    files.finish(report_);
  }

  void build_networks() {
    const fs::path& from = source();
    Config wan_keys = Config::read(from / "transformer" / "config.json");
    const models::WanConfig wan = models::WanConfig::read(wan_keys);
    Config text_keys = Config::read(from / "text_encoder" / "config.json");
    const models::Umt5Config text = models::Umt5Config::read(text_keys, report_);
    require(wan.text_dim == text.d_model, ErrorCode::bad_data, wan_keys.where(),
            "key 'text_dim': expected the text encoder's d_model = ", text.d_model, ", got ",
            wan.text_dim);
    require(wan.in_channels == vae_->config().z_dim, ErrorCode::bad_data, wan_keys.where(),
            "key 'in_channels': expected the autoencoder's z_dim = ", vae_->config().z_dim,
            ", got ", wan.in_channels);
    const auto build = [&](ParameterSource& wan_initial, ParameterSource& text_initial) {
      transformer_.emplace(wan, parameters_.component("transformer", wan_initial));
      text_encoder_.emplace(text, parameters_.component("text_encoder", text_initial));
    };
    if (setup_.init.empty()) {
      InitialParameters initial(config_.seed, text);
      build(initial, initial);
    } else {
      WeightFiles wan_files(from / "transformer", kStem, {});
      WeightFiles text_files(from / "text_encoder", "model", {});
      build(wan_files, text_files);
      models::Umt5Encoder::ignore_spare(text_files);
      wan_files.finish(report_);
      text_files.finish(report_);
    }
  }

  // Normalized latents of rendered clips.
  PooledClips encode(const ClipBucket& bucket, PooledClips clips) {
    const c10::NoGradGuard no_grad;
    const int64_t pixels = bucket.frames * bucket.height * bucket.width;
    std::vector<at::Tensor> latents;
    for (const at::Tensor& rows :
         clips.rows.split(std::max<int64_t>(1, kPixelsAtOnce / pixels), 0)) {
      const at::Tensor video = pixels_to_network(rows, setup_.dtype);
      latents.push_back(vae_->normalize(vae_->encode(video, vae_attention_).mode()).contiguous());
    }
    clips.rows = at::cat(latents);
    return clips;
  }

  // What the network is shown of a caption: at times nothing, for guidance, and at times a capital
  // at its beginning, as people write.
  std::string seen_text(std::string text, Draw draw) const {
    if (draw.chance(config_.caption_dropout)) return "";
    if (draw.chance(kCapitals)) text[0] = static_cast<char>(std::toupper(text[0]));
    return text;
  }

  FlowBatch make_batch(const ClipBucket& bucket, const PooledClips& clips, int64_t step) {
    const auto count = static_cast<int64_t>(clips.captions.size());
    std::vector<float> levels;
    std::vector<std::vector<int32_t>> texts;
    size_t longest = 1;
    for (int64_t i = 0; i < count; ++i) {
      const auto item = static_cast<uint64_t>(clips_.first_column(bucket) + i);
      const auto key = [&](DrawPurpose purpose) {
        return Draw(config_.seed,
                    {static_cast<uint64_t>(purpose), static_cast<uint64_t>(step), item});
      };
      levels.push_back(static_cast<float>(
          shifted_noise_level(key(DrawPurpose::timestep).normal(), bucket.flow_shift)));
      const std::string text =
          seen_text(clips.captions[static_cast<size_t>(i)], key(DrawPurpose::caption));
      texts.push_back(
          tokenizer_->encode(models::prompt_clean(text, "caption"), config_.text_length));
      longest = std::max(longest, texts.back().size());
    }
    FlowBatch out;
    out.latents = clips.rows;
    out.noise = clips_.noise(step, out.latents.sizes().vec());
    out.noise_level = at::tensor(levels).to(setup_.device);
    at::Tensor ids = at::full({count, static_cast<int64_t>(longest)}, tokenizer_->pad_id(),
                              at::TensorOptions(at::kLong));
    at::Tensor valid = at::empty({count}, at::TensorOptions(at::kLong));
    for (int64_t i = 0; i < count; ++i) {
      const std::vector<int32_t>& text = texts[static_cast<size_t>(i)];
      std::copy(text.begin(), text.end(), ids[i].data_ptr<int64_t>());
      valid[i] = static_cast<int64_t>(text.size());
    }
    out.ids = ids.to(setup_.device);
    out.valid_len = valid.to(setup_.device);
    return out;
  }

  // As WanPipeline gives them to the transformer: zeros behind the last token.
  at::Tensor embed_texts(const at::Tensor& ids, const at::Tensor& valid_len) {
    const at::Tensor hidden = text_encoder_->forward(ids, valid_len, attention_);
    const at::Tensor position = at::arange(ids.size(1), ids.options());
    const at::Tensor valid = (position.unsqueeze(0) < valid_len.unsqueeze(1)).unsqueeze(2);
    return at::constant_pad_nd(at::where(valid, hidden, at::zeros({}, hidden.options())),
                               {0, 0, 0, config_.text_length - ids.size(1)});
  }

  at::Tensor flow_loss(const FlowBatch& batch) {
    const at::Tensor latents = ops::widened(batch.latents);
    const at::Tensor level = batch.noise_level.view({-1, 1, 1, 1, 1});
    const at::Tensor mixed = latents + (batch.noise - latents) * level;
    models::WanInputs inputs;
    inputs.latents = mixed.to(setup_.dtype);
    inputs.timestep = batch.noise_level * kTimesteps;
    inputs.text = embed_texts(batch.ids, batch.valid_len);
    const StepContext context{.step = step_, .num_steps = config_.steps};
    const at::Tensor velocity = transformer_->forward(inputs, context, attention_);
    return at::mse_loss(velocity.to(latents.scalar_type()), batch.noise - latents);
  }

  const TrainConfig& config_;
  TaskSetup setup_;
  Report& report_;
  ClipSource clips_;
  std::optional<models::AutoencoderWan> vae_;
  std::optional<models::Tokenizer> tokenizer_;
  TrainableParameters parameters_;
  std::optional<models::WanTransformer> transformer_;
  std::optional<models::Umt5Encoder> text_encoder_;
  std::vector<ClipPool> pools_;
  Attention attention_, vae_attention_;
  int64_t step_ = 0;
  FlowBatch batch_;
};

}  // namespace

double shifted_noise_level(double normal, double shift) {
  const double u = 1 / (1 + std::exp(-normal));
  return shift * u / (1 + (shift - 1) * u);
}

std::unique_ptr<TrainingTask> make_transformer_task(const TrainConfig& config,
                                                    const TaskSetup& setup, Report& report) {
  return std::make_unique<TransformerTask>(config, setup, report);
}

}  // namespace fovea::pipelines
