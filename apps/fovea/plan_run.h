#pragma once

#include <cstdint>
#include <string>

#include "apps/fovea/generate_options.h"

namespace fovea::apps {

/// The command line of `fovea plan`. Of `generate`'s options `attention`, and with a model those of
/// model and request.
struct PlanOptions {
  GenerateOptions generate;
  std::string grid;      ///< FxHxW tokens; else from the model and the request
  int64_t heads = 0;     ///< 0: the model's, or 8
  int64_t head_dim = 0;  ///< 0: the model's, or 64
  int64_t text_len = 0;  ///< text tokens behind the grid, in one sequence with it
  int64_t step = 0;
  int64_t layer = 0;
  std::string save;  ///< folder for all plans that were made
};

/// Runs `fovea plan`; returns 0. throws Error
int run_plan(const PlanOptions& options);

}  // namespace fovea::apps
