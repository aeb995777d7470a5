#include "models/vae/wan/vae_layers.h"

#include <cmath>
#include <utility>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/check.h"
#include "core/ops/channel_norm.h"

namespace fovea::models {
namespace {

constexpr int64_t kTemporalKernel = 3;
constexpr int64_t kHistoryFrames = kTemporalKernel - 1;
constexpr double kNormFloor = 1e-12;  // of torch.nn.functional.normalize

bool channels_are_last(const at::Tensor& video) {
  return video.suggest_memory_format() == at::MemoryFormat::ChannelsLast3d;
}

// [batch, channels, frames, height, width] -> [batch * frames, channels, height, width]
at::Tensor fold_frames(const at::Tensor& video) {
  const int64_t batch = video.size(0), channels = video.size(1), frames = video.size(2);
  const int64_t height = video.size(3), width = video.size(4);
  if (channels_are_last(video)) {
    return video.permute({0, 2, 3, 4, 1})
        .reshape({batch * frames, height, width, channels})
        .permute({0, 3, 1, 2});
  }
  return video.permute({0, 2, 1, 3, 4}).reshape({batch * frames, channels, height, width});
}

// The inverse, as a view.
at::Tensor unfold_frames(const at::Tensor& pictures, int64_t batch) {
  return pictures.unflatten(0, {batch, pictures.size(0) / batch}).permute({0, 2, 1, 3, 4});
}

// [batch, 2 * channels, frames, h, w] -> [batch * frames * 2, channels, h, w]: the two halves of
// the channels are consecutive frames.
at::Tensor fold_doubled_frames(const at::Tensor& video) {
  const int64_t batch = video.size(0), channels = video.size(1) / 2, frames = video.size(2);
  const int64_t height = video.size(3), width = video.size(4);
  const at::Tensor halves =
      video.unflatten(1, {2, channels});  // [batch, 2, channels, frames, h, w]
  if (channels_are_last(video)) {
    return halves.permute({0, 3, 1, 4, 5, 2})
        .reshape({batch * frames * 2, height, width, channels})
        .permute({0, 3, 1, 2});
  }
  return halves.permute({0, 3, 1, 2, 4, 5}).reshape({batch * frames * 2, channels, height, width});
}

bool is_half(const at::Tensor& x) {
  return x.scalar_type() == at::kHalf || x.scalar_type() == at::kBFloat16;
}

// at::conv3d. For fp32 on a CPU that takes oneDNN only for many elements, and counts them without
// the width: what it takes otherwise is up to ten times slower.
at::Tensor conv3d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  at::IntArrayRef stride, at::IntArrayRef padding) {
  constexpr int64_t kSmall = 20480;  // where LibTorch draws the line for pictures
  if (x.is_cpu() && x.scalar_type() == at::kFloat && x.numel() > kSmall && at::hasMKLDNN() &&
      at::globalContext().userEnabledMkldnn()) {
    return at::mkldnn_convolution(x, weight, bias, padding, stride, /*dilation=*/{1, 1, 1},
                                  /*groups=*/1);
  }
  return at::conv3d(x, weight, bias, stride, padding);
}

// max(|x|, floor) over the channels, [batch, 1, ...]
at::Tensor channel_norm(const at::Tensor& x) {
  std::optional<at::ScalarType> dtype;
  if (is_half(x)) dtype = at::kFloat;
  return at::linalg_vector_norm(x, 2, at::IntArrayRef{1}, /*keepdim=*/true, dtype)
      .clamp_min(kNormFloor);
}

at::Tensor new_frames(const at::Tensor& like, int64_t frames) {
  std::vector<int64_t> shape = like.sizes().vec();
  shape[2] = frames;
  return at::empty(shape, like.options(), like.suggest_memory_format());
}

at::Tensor last_frames(const at::Tensor& video, int64_t frames) {
  // A copy, so that the whole video is not kept alive.
  return video.narrow(2, video.size(2) - frames, frames).clone();
}

// x + y where y is a tensor that nobody else holds
at::Tensor add_to_own(const at::Tensor& x, at::Tensor own) {
  return c10::GradMode::is_enabled() ? own + x : own.add_(x);
}

}  // namespace

VaeParameters VaeParameters::operator[](const std::string& name) const {
  return {source, prefix + name + ".", format, num_histories};
}

at::Tensor VaeParameters::get(const std::string& name, at::IntArrayRef shape) const {
  return source.get(prefix + name, shape);
}

at::Tensor VaeParameters::weight(at::IntArrayRef shape) const {
  const at::Tensor weight = get("weight", shape);
  if (format == at::MemoryFormat::Contiguous) return weight;
  return weight.contiguous(shape.size() == 5 ? at::MemoryFormat::ChannelsLast3d
                                             : at::MemoryFormat::ChannelsLast);
}

VaeChannelNorm::VaeChannelNorm(const VaeParameters& parameters, int64_t channels, int64_t places) {
  std::vector<int64_t> shape(1 + places, 1);
  shape[0] = channels;
  gamma_ = parameters.get("gamma", shape);
}

at::Tensor VaeChannelNorm::scale() const {
  const at::Tensor gamma = is_half(gamma_) ? gamma_.to(at::kFloat) : gamma_;
  return gamma * std::sqrt(static_cast<double>(gamma_.size(0)));
}

at::Tensor VaeChannelNorm::forward(const at::Tensor& x) const {
  return (x / channel_norm(x) * scale()).to(x.scalar_type());
}

at::Tensor VaeChannelNorm::activate(const at::Tensor& x) const {
  return fovea::channel_norm_silu(x, gamma_);
}

void VaeChannelNorm::activate_into(at::Tensor& out, const at::Tensor& x) const {
  if (fovea::channel_norm_silu_into(out, x, gamma_)) return;
  at::div_out(out, x, channel_norm(x));
  out.mul_(scale());
  at::silu_(out);
}

VaeCausalConv3d::VaeCausalConv3d(const VaeParameters& parameters, int64_t in_channels,
                                 int64_t out_channels, std::array<int64_t, 2> kernel)
    : weight_(parameters.weight({out_channels, in_channels, kernel[0], kernel[1], kernel[1]})),
      bias_(parameters.get("bias", {out_channels})),
      temporal_kernel_(kernel[0]),
      padding_(kernel[1] / 2) {
  FOVEA_ASSERT(temporal_kernel_ == 1 || temporal_kernel_ == kTemporalKernel);
  if (temporal_kernel_ > 1) history_ = parameters.num_histories++;
}

at::Tensor VaeCausalConv3d::convolve(const at::Tensor& padded) const {
  return conv3d(padded, weight_, bias_, /*stride=*/{1, 1, 1}, {0, padding_, padding_});
}

at::Tensor VaeCausalConv3d::forward(const at::Tensor& x, FeatureCache& cache) const {
  if (temporal_kernel_ == 1) return convolve(x);
  at::Tensor& history = cache[history_].frames;
  if (!history.defined()) history = new_frames(x, kHistoryFrames).zero_();
  const at::Tensor padded = at::cat({history, x}, 2);
  history = last_frames(padded, kHistoryFrames);
  return convolve(padded);
}

at::Tensor VaeCausalConv3d::forward(const VaeChannelNorm& norm, const at::Tensor& x,
                                    FeatureCache& cache) const {
  if (c10::GradMode::is_enabled()) return forward(norm.activate(x), cache);
  // The activation is written where the convolution reads it, behind the two frames before it.
  at::Tensor& history = cache[history_].frames;
  at::Tensor padded = new_frames(x, kHistoryFrames + x.size(2));
  at::Tensor before = padded.narrow(2, 0, kHistoryFrames);
  if (history.defined()) {
    before.copy_(history);
  } else {
    before.zero_();
  }
  at::Tensor present = padded.narrow(2, kHistoryFrames, x.size(2));
  norm.activate_into(present, x);
  history = last_frames(padded, kHistoryFrames);
  return convolve(padded);
}

VaeResidualBlock::VaeResidualBlock(const VaeParameters& parameters, int64_t in_channels,
                                   int64_t out_channels)
    : norm1_(parameters["norm1"], in_channels, 3),
      conv1_(parameters["conv1"], in_channels, out_channels, {3, 3}),
      norm2_(parameters["norm2"], out_channels, 3),
      conv2_(parameters["conv2"], out_channels, out_channels, {3, 3}) {
  if (in_channels != out_channels) {
    shortcut_.emplace(parameters["conv_shortcut"], in_channels, out_channels,
                      std::array<int64_t, 2>{1, 1});
  }
}

at::Tensor VaeResidualBlock::forward(const at::Tensor& x, FeatureCache& cache) const {
  const at::Tensor hidden = conv1_.forward(norm1_, x, cache);
  const at::Tensor update = conv2_.forward(norm2_, hidden, cache);
  return add_to_own(shortcut_ ? shortcut_->forward(x, cache) : x, update);
}

VaeAttentionBlock::VaeAttentionBlock(const VaeParameters& parameters, int64_t channels,
                                     int64_t layer)
    : layer_(layer),
      norm_(parameters["norm"], channels, 2),
      qkv_weight_(parameters["to_qkv"].weight({channels * 3, channels, 1, 1})),
      qkv_bias_(parameters["to_qkv"].get("bias", {channels * 3})),
      proj_weight_(parameters["proj"].weight({channels, channels, 1, 1})),
      proj_bias_(parameters["proj"].get("bias", {channels})) {}

at::Tensor VaeAttentionBlock::forward(const at::Tensor& x, Attention& attention) const {
  const int64_t height = x.size(3), width = x.size(4);
  const at::Tensor pictures = norm_.forward(fold_frames(x));
  const at::Tensor qkv = at::conv2d(pictures, qkv_weight_, qkv_bias_)
                             .flatten(2)
                             .transpose(1, 2)
                             .contiguous()
                             .unsqueeze(1);  // [batch * frames, 1, height * width, 3 * channels]
  const std::vector<at::Tensor> parts = qkv.chunk(3, -1);
  AttentionCall call;
  call.role = AttentionRole::self;
  call.q_layout = call.kv_layout = TokenLayout::grid(1, height, width);
  call.q = parts[0];
  call.k = parts[1];
  call.v = parts[2];
  call.layer = layer_;
  const at::Tensor mixed =
      attention.run(call).squeeze(1).transpose(1, 2).unflatten(2, {height, width});
  const at::Tensor projected = at::conv2d(mixed, proj_weight_, proj_bias_);
  return add_to_own(x, unfold_frames(projected, x.size(0)));
}

VaeMidBlock::VaeMidBlock(const VaeParameters& parameters, int64_t channels, int64_t layer)
    : first_(parameters["resnets.0"], channels, channels),
      attention_(parameters["attentions.0"], channels, layer),
      second_(parameters["resnets.1"], channels, channels) {}

at::Tensor VaeMidBlock::forward(const at::Tensor& x, FeatureCache& cache,
                                Attention& attention) const {
  return second_.forward(attention_.forward(first_.forward(x, cache), attention), cache);
}

VaeUpsample::VaeUpsample(const VaeParameters& parameters, int64_t channels, bool temporal)
    : weight_(parameters["resample.1"].weight({channels / 2, channels, 3, 3})),
      bias_(parameters["resample.1"].get("bias", {channels / 2})) {
  if (!temporal) return;
  time_conv_.emplace(parameters["time_conv"], channels, channels * 2, std::array<int64_t, 2>{3, 1});
  start_ = parameters.num_histories++;
}

at::Tensor VaeUpsample::forward(const at::Tensor& x, FeatureCache& cache) const {
  if (!time_conv_) return double_size(x);
  if (std::exchange(cache[start_].started, true)) return double_size(double_frame_rate(x, cache));
  // The first frame is neither doubled nor remembered: the second sees zeros before itself.
  if (x.size(2) == 1) return double_size(x);
  const at::Tensor later = double_frame_rate(x.narrow(2, 1, x.size(2) - 1), cache);
  return double_size(at::cat({x.narrow(2, 0, 1), later}, 2));
}

at::Tensor VaeUpsample::double_frame_rate(const at::Tensor& x, FeatureCache& cache) const {
  return unfold_frames(fold_doubled_frames(time_conv_->forward(x, cache)), x.size(0));
}

at::Tensor VaeUpsample::double_size(const at::Tensor& x) const {
  at::Tensor pictures = fold_frames(x);
  // Copies only, so half types need no cast to fp32 as in WanUpsample.
  pictures = at::_upsample_nearest_exact2d(pictures, {2 * x.size(3), 2 * x.size(4)}, 2.0, 2.0);
  return unfold_frames(at::conv2d(pictures, weight_, bias_, /*stride=*/1, /*padding=*/1),
                       x.size(0));
}

VaeDownsample::VaeDownsample(const VaeParameters& parameters, int64_t channels, bool temporal)
    : weight_(parameters["resample.1"].weight({channels, channels, 3, 3})),
      bias_(parameters["resample.1"].get("bias", {channels})) {
  if (!temporal) return;
  time_weight_ = parameters["time_conv"].weight({channels, channels, kTemporalKernel, 1, 1});
  time_bias_ = parameters["time_conv"].get("bias", {channels});
  history_ = parameters.num_histories++;
}

at::Tensor VaeDownsample::halve_frame_rate(const at::Tensor& x, FrameHistory& history) const {
  const auto halve = [&](const at::Tensor& frames) {
    return conv3d(frames, time_weight_, time_bias_, /*stride=*/{2, 1, 1}, /*padding=*/{0, 0, 0});
  };
  const at::Tensor before = std::exchange(history.frames, last_frames(x, 1));
  if (std::exchange(history.started, true)) return halve(at::cat({before, x}, 2));
  if (x.size(2) == 1) return x;
  return at::cat({x.narrow(2, 0, 1), halve(x)}, 2);
}

at::Tensor VaeDownsample::forward(const at::Tensor& x, FeatureCache& cache) const {
  // One column and one row of zeros, behind only.
  const at::Tensor padded = at::constant_pad_nd(fold_frames(x), {0, 1, 0, 1});
  const at::Tensor halved =
      unfold_frames(at::conv2d(padded, weight_, bias_, /*stride=*/2), x.size(0));
  return history_ < 0 ? halved : halve_frame_rate(halved, cache[history_]);
}

}  // namespace fovea::models
