#include "models/lpips/lpips.h"

#include <algorithm>
#include <array>
#include <cmath>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/guard.h"
#include "core/interrupt.h"

namespace fovea::models {
namespace {

// A convolution of a network, each followed by ReLU.
struct ConvolutionSize {
  int64_t stage;  // from 1
  int64_t index;  // in torchvision's `features`, and so in the parameters' names
  int64_t in, out, kernel, stride, padding;
};

struct NetworkSize {
  const char* name;
  int64_t pool;                    // side of the pooling windows
  std::vector<int64_t> pooled_at;  // stages that begin with pooling
  int64_t min_side;
  std::vector<ConvolutionSize> convolutions;
};

constexpr int64_t kStages = 5;

const std::vector<NetworkSize>& known_networks() {
  static const std::vector<NetworkSize> networks = {{"alexnet",
                                                     3,
                                                     {2, 3},
                                                     31,
                                                     {{1, 0, 3, 64, 11, 4, 2},
                                                      {2, 3, 64, 192, 5, 1, 2},
                                                      {3, 6, 192, 384, 3, 1, 1},
                                                      {4, 8, 384, 256, 3, 1, 1},
                                                      {5, 10, 256, 256, 3, 1, 1}}},
                                                    {"vgg16",
                                                     2,
                                                     {2, 3, 4, 5},
                                                     16,
                                                     {{1, 0, 3, 64, 3, 1, 1},
                                                      {1, 2, 64, 64, 3, 1, 1},
                                                      {2, 5, 64, 128, 3, 1, 1},
                                                      {2, 7, 128, 128, 3, 1, 1},
                                                      {3, 10, 128, 256, 3, 1, 1},
                                                      {3, 12, 256, 256, 3, 1, 1},
                                                      {3, 14, 256, 256, 3, 1, 1},
                                                      {4, 17, 256, 512, 3, 1, 1},
                                                      {4, 19, 512, 512, 3, 1, 1},
                                                      {4, 21, 512, 512, 3, 1, 1},
                                                      {5, 24, 512, 512, 3, 1, 1},
                                                      {5, 26, 512, 512, 3, 1, 1},
                                                      {5, 28, 512, 512, 3, 1, 1}}}};
  return networks;
}

std::string name_of(const ConvolutionSize& size) {
  return str("net.slice", size.stage, ".", size.index);
}

// The network that most of the names belong to, so that one missing name is reported as missing.
const NetworkSize& recognize(const ParameterSource& source, const std::string& where) {
  const NetworkSize* best = nullptr;
  int64_t most = 0;
  bool tie = true;
  for (const NetworkSize& network : known_networks()) {
    const int64_t count = std::count_if(
        network.convolutions.begin(), network.convolutions.end(),
        [&](const ConvolutionSize& size) { return source.has(name_of(size) + ".weight"); });
    tie = count == most;
    if (count > most) most = count, best = &network;
  }
  require(best != nullptr && !tie, ErrorCode::bad_data, where,
          "holds no network that LPIPS is computed with: expected the tensors of lpips.LPIPS with "
          "net='alex' or net='vgg' (net.slice1.0.weight, ..., lin4.model.1.weight)");
  return *best;
}

// Of the pictures that the networks were trained on; a file of the package holds it as well.
at::Tensor channel_constant(ParameterSource& source, const std::string& name,
                            const at::Tensor& usual) {
  constexpr std::array<int64_t, 4> shape = {1, 3, 1, 1};
  return source.has(name) ? source.get(name, shape) : usual.view(shape);
}

// Features of each pixel, scaled to length 1.
at::Tensor unit_length(const at::Tensor& features) {
  return features / (features.square().sum(1, /*keepdim=*/true).sqrt() + 1e-10);
}

}  // namespace

Lpips::Lpips(ParameterSource& source, const std::string& where) {
  const NetworkSize& network = recognize(source, where);
  network_ = network.name;
  min_side_ = network.min_side;
  stages_.resize(kStages);
  for (const int64_t stage : network.pooled_at) stages_[stage - 1].pool = network.pool;
  int64_t channels[kStages] = {};
  for (const ConvolutionSize& size : network.convolutions) {
    const std::string name = name_of(size);
    channels[size.stage - 1] = size.out;
    stages_[size.stage - 1].convolutions.push_back(
        {source.get(name + ".weight", {size.out, size.in, size.kernel, size.kernel}),
         source.get(name + ".bias", {size.out}), size.stride, size.padding});
  }
  for (int64_t i = 0; i < kStages; ++i) {
    stages_[i].channel_weights =
        source.get(str("lin", i, ".model.1.weight"), {1, channels[i], 1, 1});
  }
  const at::TensorOptions options = stages_[0].channel_weights.options();
  shift_ = channel_constant(source, "scaling_layer.shift",
                            at::tensor({-0.030, -0.088, -0.188}, at::kDouble).to(options));
  scale_ = channel_constant(source, "scaling_layer.scale",
                            at::tensor({0.458, 0.448, 0.450}, at::kDouble).to(options));
}

at::Tensor Lpips::distance(const at::Tensor& a, const at::Tensor& b) const {
  require(a.sizes() == b.sizes() && a.dim() == 4 && a.size(1) == 3, ErrorCode::usage, "LPIPS",
          "expected two batches of RGB pictures of one size, got ", a.sizes(), " and ", b.sizes());
  require(std::min(a.size(2), a.size(3)) >= min_side_, ErrorCode::usage, "LPIPS", network_,
          " needs pictures of ", min_side_, "x", min_side_, " or more, got ", a.size(3), "x",
          a.size(2));
  at::Tensor hidden = (at::cat({a, b}) - shift_) / scale_;
  at::Tensor sum = at::zeros({a.size(0)}, hidden.options());
  for (const Stage& stage : stages_) {
    if (stage.pool > 0) hidden = at::max_pool2d(hidden, stage.pool, /*stride=*/2);
    for (const Convolution& now : stage.convolutions) {
      throw_if_interrupted();
      hidden = at::conv2d(hidden, now.weight, now.bias, now.stride, now.padding).relu_();
    }
    const std::vector<at::Tensor> both = unit_length(hidden).chunk(2);
    sum += at::conv2d((both[0] - both[1]).square_(), stage.channel_weights).mean({1, 2, 3});
  }
  return sum;
}

Lpips load_lpips(const fs::path& file, at::Device device, Report& report) {
  WeightFiles files(file, {.dtype = at::kFloat, .device = device});
  // The package registers its five heads a second time, as a list.
  for (int64_t i = 0; i < kStages; ++i) files.ignore(str("lins.", i, ".model.1.weight"));
  Lpips out(files, file.string());
  files.finish(report);
  return out;
}

double lpips_distance(const Lpips& lpips, std::span<const uint8_t> a, std::span<const uint8_t> b,
                      int64_t width, int64_t height) {
  const auto expected = static_cast<size_t>(3 * width * height);
  require(a.size() == expected && b.size() == expected, ErrorCode::usage, "LPIPS", "expected ",
          expected, " samples, got ", a.size(), " and ", b.size());
  if (std::equal(a.begin(), a.end(), b.begin())) return 0;
  const auto tensor_of = [&](std::span<const uint8_t> picture) {
    at::Tensor bytes = at::empty({1, height, width, 3}, at::kByte);
    std::copy(picture.begin(), picture.end(), bytes.mutable_data_ptr<uint8_t>());
    return bytes.permute({0, 3, 1, 2}).to(lpips.options()).div_(127.5).sub_(1).contiguous();
  };
  const double distance =
      guarded("LPIPS", [&] { return lpips.distance(tensor_of(a), tensor_of(b)).item<double>(); });
  require(std::isfinite(distance), ErrorCode::non_finite, "LPIPS",
          "the network's features are too large for its numbers");
  return distance;
}

}  // namespace fovea::models
