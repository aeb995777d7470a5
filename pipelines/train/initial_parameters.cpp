#include "pipelines/train/initial_parameters.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "core/check.h"
#include "core/file.h"
#include "core/guard.h"
#include "core/interrupt.h"

namespace fovea::pipelines {
namespace {

constexpr double kEmbedderDeviation = 0.02;
constexpr double kBranchScale = 0.1;

bool contains(const std::string& name, const char* part) {
  return name.find(part) != std::string::npos;
}

bool is_text(const std::string& name) {
  return name == "shared.weight" || name.starts_with("encoder.block.") ||
         name == "encoder.final_layer_norm.weight";
}

bool is_autoencoder(const std::string& name) {
  return !is_text(name) &&
         (name.starts_with("encoder.") || name.starts_with("decoder.") ||
          name.starts_with("quant_conv.") || name.starts_with("post_quant_conv."));
}

bool is_norm(const std::string& name, at::IntArrayRef shape) {
  return name.ends_with("gamma") ||
         (shape.size() == 1 && name.ends_with(".weight") && contains(name, "norm"));
}

// Of the latents of a new autoencoder: with as much noise as signal in them, which a logvar near 0
// would be, the decoder learns nothing for long.
constexpr double kLogvar = -6.0;

// Adds to a table of relative positions [buckets, heads] what lets heads begin with a view: of four
// the first looks back, the second ahead, the third around, and the last everywhere.
//
// Without it a caption is a bag of words: a table that began near 0 was there still after 9,300
// steps, and "a red cube and a blue cone" had its colours either way round.
void look_nearby(at::Tensor& table) {
  constexpr int64_t kFar = 8;  // steps of the bias at most
  const int64_t half = table.size(0) / 2;
  for (int64_t bucket = 0; bucket < table.size(0); ++bucket) {
    const int64_t distance = bucket % half;
    const bool is_ahead = bucket >= half;
    const auto near = static_cast<double>(-std::min(distance, kFar));
    const double views[] = {is_ahead ? -kFar : near, is_ahead || distance == 0 ? near : -kFar,
                            near / 4, 0};
    for (int64_t head = 0; head < table.size(1); ++head) table[bucket][head] += views[head % 4];
  }
}

// 32 bits, which is what LibTorch's CPU generator is made from.
uint64_t seed_of(uint64_t seed, const std::string& name, at::IntArrayRef shape) {
  return std::stoull(sha256(fovea::str(seed, "\n", name, "\n", shape)).substr(0, 8), nullptr, 16);
}

double fan_in(at::IntArrayRef shape) {
  return static_cast<double>(c10::multiply_integers(shape.slice(1)));
}

// Convolutions along time [out, in, 3, 1, 1]: the last tap is the present frame, or the later of
// two that become one. With twice the channels the halves are two frames.
void copy_present(at::Tensor& values) {
  const int64_t out = values.size(0), in = values.size(1), last = values.size(2) - 1;
  for (int64_t row = 0; row < out; ++row) values[row][row % in][last].fill_(1.0);
}

void fill_autoencoder(const std::string& name, at::Tensor& values, at::Generator& generator) {
  if (contains(name, "time_conv")) return copy_present(values);
  const bool ends_branch = contains(name, ".conv2.") || contains(name, ".proj.");
  const double scale = ends_branch ? kBranchScale : 1.0;
  values.normal_(0.0, scale / std::sqrt(fan_in(values.sizes())), generator);
}

void fill_transformer(const std::string& name, at::Tensor& values, at::Generator& generator) {
  if (name == "proj_out.weight" || contains(name, "pos_embed")) return;
  if (name.ends_with("scale_shift_table")) {
    values.normal_(0.0, 1.0 / std::sqrt(static_cast<double>(values.size(-1))), generator);
  } else if (contains(name, "time_embedder") || contains(name, "time_proj")) {
    values.normal_(0.0, kEmbedderDeviation, generator);
  } else {
    const double inputs = fan_in(values.sizes());
    const double bound = std::sqrt(6.0 / (inputs + static_cast<double>(values.size(0))));
    values.uniform_(-bound, bound, generator);
  }
}

}  // namespace

InitialParameters::InitialParameters(uint64_t seed, models::Umt5Config text)
    : seed_(seed), text_(std::move(text)) {}

bool InitialParameters::has(const std::string& name) const {
  return name != "encoder.embed_tokens.weight";
}

double InitialParameters::text_deviation(const std::string& name, at::IntArrayRef shape) const {
  const auto d_model = static_cast<double>(text_.d_model);
  if (name == "shared.weight") return 1.0;
  if (contains(name, "relative_attention_bias")) return 1.0 / std::sqrt(d_model);
  const double deviation = 1.0 / std::sqrt(fan_in(shape));
  const bool query = contains(name, "SelfAttention.q.");
  return query ? deviation / std::sqrt(static_cast<double>(text_.d_kv)) : deviation;
}

at::Tensor InitialParameters::get(const std::string& name, at::IntArrayRef shape, bool) {
  throw_if_interrupted();
  at::Tensor values = guarded(name, [&] { return at::zeros(shape, at::kFloat); });
  if (name == "quant_conv.bias") values.chunk(2)[1].fill_(kLogvar);
  if (name.ends_with(".bias")) return values;
  if (is_norm(name, shape)) return values.fill_(1.0);
  require(shape.size() >= 2, ErrorCode::usage, name, "shape ", shape,
          ": is no bias, norm, matrix or table");
  at::Generator generator = at::detail::createCPUGenerator(seed_of(seed_, name, shape));
  if (is_text(name)) {
    values.normal_(0.0, text_deviation(name, shape), generator);
    if (contains(name, "relative_attention_bias")) look_nearby(values);
  } else if (is_autoencoder(name)) {
    fill_autoencoder(name, values, generator);
  } else {
    fill_transformer(name, values, generator);
  }
  return values;
}

}  // namespace fovea::pipelines
