#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace fovea::apps {

/// The command line of `fovea bench attention`.
struct BenchOptions {
  std::vector<std::string> methods = {"dense,topk:density=0.1|0.25|0.5"};
  std::string lengths;             ///< tokens, as `parse_numbers`
  std::vector<std::string> grids;  ///< FxHxW
  std::string shapes;              ///< HEADSxTOKENSxDIM, several with commas
  std::string executor;            ///< of methods that name none; empty: the first that runs a plan
  std::string dtypes = "fp32";
  int64_t batch = 1;
  int64_t heads = 8;
  int64_t head_dim = 128;
  int64_t repeats = 5;
  /// Milliseconds that calls are repeated for in each measurement, as often before it to warm up;
  /// 0: one call; below 0: 50 on a GPU, 0 on the CPU.
  double duration = -1;
  uint64_t seed = 0;
  std::string device = "cpu";
  int threads = 0;
  std::string format = "md";
  std::string out;  ///< file; empty: standard output
  bool overwrite = false;
  bool quiet = false;
};

/// Runs `fovea bench attention`; returns 0. throws Error
int run_bench_attention(const BenchOptions& options);

}  // namespace fovea::apps
