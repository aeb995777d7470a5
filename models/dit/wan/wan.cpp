#include "models/dit/wan/wan.h"

#include <cmath>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/ops/modulate.h"
#include "core/ops/widened.h"

namespace fovea::models {
namespace {

// Sines and cosines of timestep · 10000^(-2i / dim), cosines first. [batch] → [batch, dim], fp32
// source  Vaswani et al., "Attention Is All You Need", 2017, section 3.5
at::Tensor time_embedding(const at::Tensor& timestep, int64_t dim) {
  const int64_t half = dim / 2;
  const at::Tensor exponent =
      at::arange(half, timestep.options().dtype(at::kFloat)) * -std::log(10000.0) / half;
  const at::Tensor angle = timestep.to(at::kFloat).unsqueeze(1) * exponent.exp().unsqueeze(0);
  const at::Tensor out = at::cat({angle.cos(), angle.sin()}, 1);
  return dim % 2 == 0 ? out : at::constant_pad_nd(out, {0, 1});
}

}  // namespace

RopeTables make_rope_tables(const WanConfig& config, std::array<int64_t, 3> grid,
                            at::Device device) {
  const int64_t side = 2 * (config.attention_head_dim / 6);
  const int64_t dims[3] = {config.attention_head_dim - 2 * side, side, side};
  std::vector<at::Tensor> angles;
  for (int axis = 0; axis < 3; ++axis) {
    const auto options = at::TensorOptions().dtype(at::kDouble);
    const at::Tensor exponent = at::arange(0, dims[axis], 2, options) / dims[axis];
    const at::Tensor frequency = at::pow(at::Scalar(10000.0), exponent).reciprocal();
    const at::Tensor position = at::arange(grid[axis], at::TensorOptions().dtype(at::kLong));
    std::vector<int64_t> shape = {1, 1, 1, -1};
    shape[static_cast<size_t>(axis)] = grid[axis];
    if (dims[axis] == 0) shape.back() = 0;
    angles.push_back(at::outer(position.to(at::kDouble), frequency)
                         .view(shape)
                         .expand({grid[0], grid[1], grid[2], dims[axis] / 2}));
  }
  const at::Tensor all = at::cat(angles, -1).reshape({grid[0] * grid[1] * grid[2], -1});
  return {all.cos().to(at::kFloat).to(device), all.sin().to(at::kFloat).to(device)};
}

WanTransformer::WanTransformer(const WanConfig& config, ParameterSource& source) : config_(config) {
  const int64_t dim = config.inner_dim();
  const auto [pt, ph, pw] = config.patch_size;
  patch_weight_ = source.get("patch_embedding.weight", {dim, config.in_channels, pt, ph, pw});
  patch_bias_ = source.get("patch_embedding.bias", {dim});
  const std::string condition = "condition_embedder.";
  time_1_ = Linear(source, condition + "time_embedder.linear_1", config.freq_dim, dim, true,
                   /*keep_fp32=*/true);
  time_2_ =
      Linear(source, condition + "time_embedder.linear_2", dim, dim, true, /*keep_fp32=*/true);
  time_proj_ = Linear(source, condition + "time_proj", dim, 6 * dim);
  text_1_ = Linear(source, condition + "text_embedder.linear_1", config.text_dim, dim);
  text_2_ = Linear(source, condition + "text_embedder.linear_2", dim, dim);
  if (config.image_dim) {
    const std::string image = condition + "image_embedder.";
    image_norm_1_ = LayerNorm(source, image + "norm1", *config.image_dim, 1e-5, /*keep_fp32=*/true);
    image_up_ = Linear(source, image + "ff.net.0.proj", *config.image_dim, *config.image_dim);
    image_down_ = Linear(source, image + "ff.net.2", *config.image_dim, dim);
    image_norm_2_ = LayerNorm(source, image + "norm2", dim, 1e-5, /*keep_fp32=*/true);
    if (config.pos_embed_seq_len) {
      image_positions_ =
          source.get(image + "pos_embed", {1, *config.pos_embed_seq_len, *config.image_dim});
    }
  }
  for (int64_t i = 0; i < config.num_layers; ++i) {
    throw_if_interrupted();
    blocks_.emplace_back(source, str("blocks.", i), config);
  }
  proj_out_ = Linear(source, "proj_out", dim, config.out_channels * pt * ph * pw);
  scale_shift_table_ = source.get("scale_shift_table", {1, 2, dim}, /*keep_fp32=*/true);
}

at::Tensor WanTransformer::embed_image(const at::Tensor& image) const {
  at::Tensor x = image;
  if (image_positions_.defined()) {
    // First and last frame of an item stand in two batch rows; their tokens become one sequence.
    x = x.reshape({-1, 2 * x.size(1), x.size(2)}) + image_positions_;
  }
  x = image_down_(at::gelu(image_up_((*image_norm_1_)(x))));
  return (*image_norm_2_)(x);
}

WanTransformer::Condition WanTransformer::embed(const WanInputs& inputs) const {
  Condition out;
  const at::Tensor wave =
      time_embedding(inputs.timestep, config_.freq_dim).to(time_1_.weight.scalar_type());
  out.time = time_2_(at::silu(time_1_(wave))).to(inputs.text.scalar_type());
  const at::Tensor modulation = time_proj_(at::silu(out.time)).unflatten(1, {6, -1});
  out.modulation = ops::widened(modulation).transpose(0, 1).contiguous();
  out.context = text_2_(at::gelu(text_1_(inputs.text), "tanh"));
  if (inputs.image.defined()) out.context = at::cat({embed_image(inputs.image), out.context}, 1);
  return out;
}

// A convolution whose stride is its kernel, written as one matrix product.
at::Tensor WanTransformer::patchify(const at::Tensor& latents) const {
  const auto [pt, ph, pw] = config_.patch_size;
  const at::IntArrayRef size = latents.sizes();
  const at::Tensor patches =
      latents.view({size[0], size[1], size[2] / pt, pt, size[3] / ph, ph, size[4] / pw, pw})
          .permute({0, 2, 4, 6, 1, 3, 5, 7})
          .reshape({size[0], -1, size[1] * pt * ph * pw});
  return at::linear(patches, patch_weight_.flatten(1), patch_bias_);
}

at::Tensor WanTransformer::unpatchify(const at::Tensor& x, std::array<int64_t, 3> grid) const {
  const auto [pt, ph, pw] = config_.patch_size;
  return x.view({x.size(0), grid[0], grid[1], grid[2], pt, ph, pw, config_.out_channels})
      .permute({0, 7, 1, 4, 2, 5, 3, 6})
      .reshape({x.size(0), config_.out_channels, grid[0] * pt, grid[1] * ph, grid[2] * pw});
}

const RopeTables& WanTransformer::rope(std::array<int64_t, 3> grid, at::Device device) {
  if (grid != rope_grid_ || rope_.cos.device() != device) {
    rope_ = make_rope_tables(config_, grid, device);
    rope_grid_ = grid;
  }
  return rope_;
}

at::Tensor WanTransformer::forward(const WanInputs& inputs, const StepContext& step,
                                   Attention& attention) {
  std::array<int64_t, 3> grid{};
  for (size_t axis = 0; axis < 3; ++axis) {
    const int64_t size = inputs.latents.size(static_cast<int64_t>(axis) + 2);
    grid[axis] = size / config_.patch_size[axis];
    require(size % config_.patch_size[axis] == 0 && size > 0, ErrorCode::usage, "transformer",
            "latent size ", size, " is no multiple of patch_size ", config_.patch_size[axis]);
    require(grid[axis] <= config_.rope_max_seq_len, ErrorCode::usage, "transformer", "a side of ",
            grid[axis], " tokens is above rope_max_seq_len = ", config_.rope_max_seq_len);
  }
  const TokenLayout layout = TokenLayout::grid(grid[0], grid[1], grid[2]);
  const RopeTables& tables = rope(grid, inputs.latents.device());
  const Condition condition = embed(inputs);

  at::Tensor x = patchify(inputs.latents);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    throw_if_interrupted();
    x = blocks_[i].forward({x, condition.context, layout, tables, step, static_cast<int64_t>(i)},
                           condition.modulation, attention);
  }
  const at::Tensor table = scale_shift_table_.transpose(0, 1) + ops::widened(condition.time);
  x = fovea::layer_norm_modulate(x, table.select(0, 1), table.select(0, 0), config_.eps);
  return unpatchify(proj_out_(x), grid);
}

}  // namespace fovea::models
