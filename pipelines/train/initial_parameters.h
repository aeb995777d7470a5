#pragma once

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

#include "core/weights.h"
#include "models/text/umt5/umt5_config.h"

namespace fovea::pipelines {

/// Values that training starts from, for the networks of a Wan2.1 folder: fp32 on the CPU.
///
/// The parameter's name says what it is: biases 0, norms 1, and
/// - transformer: Glorot's uniform distribution; embedder of time and `time_proj` N(0, 0.02²), so
///   that adaptive norms begin almost neutral; `scale_shift_table` N(0, 1 / dim);
///   `proj_out` 0, so that the first prediction is 0;
/// - text encoder: embeddings N(0, 1), matrices and position tables as T5, whose attention has no
///   scale: q has the factor 1 / sqrt(d_kv) instead; of four heads one begins with a bias towards
///   the words before, one towards those behind, one towards both (slopes 1, 1 and 1/4 a word);
/// - autoencoder: N(0, 1 / fan_in); a tenth of that for what ends a residual branch, so that blocks
///   begin near the identity; `time_conv` copies: both new frames are the old one, and of two
///   frames the later stays; latents have little noise.
///
/// source  Glorot and Bengio, 2010, section 4.2.1; Peebles and Xie, "Scalable Diffusion Models with
///         Transformers", 2023, section 3 (zero output, near-neutral adaptive norms); Raffel et
///         al., 2020, and Shazeer and Stern, 2018, for T5; Press et al., "Train Short, Test Long",
///         2022, section 3 (linear biases)
class InitialParameters : public ParameterSource {
 public:
  /// text  sizes of the text encoder that is asked for: d_model and d_kv set deviations
  explicit InitialParameters(uint64_t seed, models::Umt5Config text = {});

  /// Depends on seed, name and shape alone, not on what has been asked before; a fresh tensor each
  /// time.
  ///
  /// throws  Error usage for a parameter that the name does not tell how to start, resource
  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32 = false) override;
  /// Every name but the second one of the text encoder's embedding table: checkpoints hold it as
  /// `shared.weight`.
  bool has(const std::string& name) const override;

 private:
  double text_deviation(const std::string& name, at::IntArrayRef shape) const;

  uint64_t seed_;
  models::Umt5Config text_;
};

}  // namespace fovea::pipelines
