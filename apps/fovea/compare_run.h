#pragma once

#include <string>
#include <vector>

#include "apps/fovea/generate_options.h"

namespace fovea::apps {

/// The command line of `fovea compare`; of `generate`'s options those that say what to make.
struct CompareOptions {
  GenerateOptions generate;
  std::vector<std::string> methods;
  std::string lpips;  ///< safetensors file of the network that LPIPS is computed with, or empty
};

/// Runs `fovea compare`; returns 0. throws Error
int run_compare(CompareOptions options);

}  // namespace fovea::apps
