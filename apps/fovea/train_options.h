#pragma once

#include <string>

namespace fovea::apps {

/// What the command line of `fovea train` says.
struct TrainOptions {
  std::string config;
  std::string out;
  std::string init;
  std::string device;  ///< empty: cuda with gpus, else cpu
  std::string dtype = "fp32";
  std::string report;
  int threads = 0;
  int gpus = 0;  ///< processes to start, one a GPU; 0: this one alone, or what a launcher says
  bool resume = false;
  bool overwrite = false;
  bool strict = false;
  bool json = false;
  bool quiet = false;
};

}  // namespace fovea::apps
