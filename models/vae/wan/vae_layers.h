#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/attention.h"
#include "core/weights.h"

// Layers of the Wan2.1 autoencoder. Videos are [batch, channels, frames, height, width], dense in
// the default or in the channels-last memory format: the layers keep the format they are given.
//
// While gradients are recorded every layer works out of place; otherwise it writes into tensors
// that it has made itself.

namespace fovea::models {

/// What one stream of frames leaves behind in one layer that looks back in time.
struct FrameHistory {
  at::Tensor frames;     ///< the layer's last input frames, or undefined before the first
  bool started = false;  ///< whether the first chunk has passed
};

/// What one stream of frames leaves behind in all layers of a network, by the layers' own index.
using FeatureCache = std::vector<FrameHistory>;

/// Where layers get their parameters while a network is built: names below a prefix.
struct VaeParameters {
  ParameterSource& source;
  std::string prefix;       ///< "encoder.conv_in.", with the dot
  at::MemoryFormat format;  ///< of convolution weights
  int64_t& num_histories;   ///< indices in `FeatureCache` given out so far

  /// The same below `name`.
  VaeParameters operator[](const std::string& name) const;
  at::Tensor get(const std::string& name, at::IntArrayRef shape) const;
  /// A weight [out, in, ...] of a convolution in `format`: of 2-D ones the 2-D counterpart.
  at::Tensor weight(at::IntArrayRef shape) const;
};

/// Norm of the channel vector at each place: x / max(|x|, 1e-12) * sqrt(channels) * gamma, the norm
/// in fp32 at least (`WanRMS_norm`).
class VaeChannelNorm {
 public:
  /// places  dimensions of gamma behind the channels: 3 in video layers, 2 in picture layers
  VaeChannelNorm(const VaeParameters& parameters, int64_t channels, int64_t places);
  /// x  [batch, channels, ...]
  at::Tensor forward(const at::Tensor& x) const;
  /// silu(norm(x)) of a video
  at::Tensor activate(const at::Tensor& x) const;
  /// Writes silu(norm(x)) into `out`, of x's shape; not differentiable.
  void activate_into(at::Tensor& out, const at::Tensor& x) const;

 private:
  at::Tensor scale() const;  // sqrt(channels) * gamma, in fp32 at least

  at::Tensor gamma_;  // [channels, 1, ...]
};

/// 3-D convolution that sees the present and, with a temporal kernel of 3, two earlier frames; the
/// frames before the first count as zeros (`WanCausalConv3d` with its feature cache).
class VaeCausalConv3d {
 public:
  /// kernel  temporal and spatial extent: {3, 3}, {3, 1} or {1, 1}; picture size is kept
  VaeCausalConv3d(const VaeParameters& parameters, int64_t in_channels, int64_t out_channels,
                  std::array<int64_t, 2> kernel);
  /// x  the next frames of the stream; returns as many
  at::Tensor forward(const at::Tensor& x, FeatureCache& cache) const;
  /// forward(silu(norm(x))), with fewer passes over memory
  at::Tensor forward(const VaeChannelNorm& norm, const at::Tensor& x, FeatureCache& cache) const;

 private:
  at::Tensor convolve(const at::Tensor& padded) const;

  at::Tensor weight_;
  at::Tensor bias_;
  int64_t temporal_kernel_;
  int64_t padding_;
  int64_t history_ = -1;
};

/// Two convolutions around a residual connection (`WanResidualBlock`).
class VaeResidualBlock {
 public:
  VaeResidualBlock(const VaeParameters& parameters, int64_t in_channels, int64_t out_channels);
  at::Tensor forward(const at::Tensor& x, FeatureCache& cache) const;

 private:
  VaeChannelNorm norm1_;
  VaeCausalConv3d conv1_;
  VaeChannelNorm norm2_;
  VaeCausalConv3d conv2_;
  std::optional<VaeCausalConv3d> shortcut_;
};

/// Self-attention with one head among the places of each frame (`WanAttentionBlock`).
class VaeAttentionBlock {
 public:
  /// layer  its index in attention calls
  VaeAttentionBlock(const VaeParameters& parameters, int64_t channels, int64_t layer);
  at::Tensor forward(const at::Tensor& x, Attention& attention) const;

 private:
  int64_t layer_;
  VaeChannelNorm norm_;
  at::Tensor qkv_weight_;
  at::Tensor qkv_bias_;
  at::Tensor proj_weight_;
  at::Tensor proj_bias_;
};

/// Residual block, attention, residual block (`WanMidBlock` with one layer).
class VaeMidBlock {
 public:
  VaeMidBlock(const VaeParameters& parameters, int64_t channels, int64_t layer);
  at::Tensor forward(const at::Tensor& x, FeatureCache& cache, Attention& attention) const;

 private:
  VaeResidualBlock first_;
  VaeAttentionBlock attention_;
  VaeResidualBlock second_;
};

/// Doubles height and width and halves the channels (`WanResample`, upsample2d); with `temporal`
/// (upsample3d) a stream's first frame stays one frame and each later one becomes two.
class VaeUpsample {
 public:
  VaeUpsample(const VaeParameters& parameters, int64_t channels, bool temporal);
  at::Tensor forward(const at::Tensor& x, FeatureCache& cache) const;

 private:
  at::Tensor double_frame_rate(const at::Tensor& x, FeatureCache& cache) const;
  at::Tensor double_size(const at::Tensor& x) const;

  at::Tensor weight_;
  at::Tensor bias_;
  std::optional<VaeCausalConv3d> time_conv_;
  int64_t start_ = -1;
};

/// Halves height and width, rounding down (`WanResample`, downsample2d); with `temporal`
/// (downsample3d) a stream's first frame stays and each later pair of frames becomes one.
class VaeDownsample {
 public:
  VaeDownsample(const VaeParameters& parameters, int64_t channels, bool temporal);
  /// x  where `temporal`: an odd number of frames at first, then an even number
  at::Tensor forward(const at::Tensor& x, FeatureCache& cache) const;

 private:
  at::Tensor halve_frame_rate(const at::Tensor& x, FrameHistory& history) const;

  at::Tensor weight_;
  at::Tensor bias_;
  at::Tensor time_weight_;  // undefined unless temporal
  at::Tensor time_bias_;
  int64_t history_ = -1;
};

}  // namespace fovea::models
