#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/file.h"
#include "core/report.h"

namespace fovea {

class SafetensorsFile;
struct StoredTensor;

/// Where a network gets its parameters from, by name. A network's constructor asks for each of its
/// parameters once, with the shape it needs; a file, a random generator or an optimizer's copy
/// answers.
class ParameterSource {
 public:
  virtual ~ParameterSource() = default;

  /// The parameter `name`, contiguous, of exactly `shape`, on the source's device.
  ///
  /// keep_fp32  the parameter stays in fp32 even where the source casts to a half type
  /// throws     Error bad_data when the shape differs. A missing name is recorded, a tensor of
  ///            unspecified values returned, and `finish` throws
  virtual at::Tensor get(const std::string& name, at::IntArrayRef shape,
                         bool keep_fp32 = false) = 0;
  /// Whether `name` exists; for parameters that a checkpoint may leave out.
  virtual bool has(const std::string& name) const = 0;
};

/// How parameters are delivered.
struct WeightOptions {
  at::ScalarType dtype = at::kFloat;  ///< type that floating parameters are cast to while loading
  at::Device device = at::kCPU;
};

/// The parameters of one model from safetensors files: FOLDER/STEM.safetensors, or the shards
/// that FOLDER/STEM.safetensors.index.json lists (`WeightIndex` says which). Opening reads headers
/// only; each tensor is read, cast and moved piece by piece when it is asked for, so a model never
/// exists twice in memory.
class WeightFiles : public ParameterSource {
 public:
  /// throws  Error bad_data: missing or truncated shard, header that lies, path leaving the folder,
  ///         two files that hold the same name
  WeightFiles(const fs::path& folder, const std::string& stem, WeightOptions options);
  /// One safetensors file, or the shards that a .json index file lists.
  WeightFiles(const fs::path& file, WeightOptions options);
  ~WeightFiles() override;
  WeightFiles(WeightFiles&&) noexcept;

  /// Also throws Error bad_data for a tensor of integers, non_finite for one that holds NaN or Inf,
  /// resource when memory does not suffice.
  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32 = false) override;
  bool has(const std::string& name) const override;

  /// Names in the files that belong to buffers or to parts this project does not run.
  void ignore(const std::string& name);
  /// throws Error bad_data listing missing keys (the first 8 and their count); warns about keys in
  /// the files that nobody asked for (an error under --strict).
  void finish(Report& report);
  /// Bytes of all tensor data in the files.
  uint64_t bytes() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

/// Parameters drawn from a normal distribution, for benchmarks and tests without a checkpoint.
/// Weights get `scale` / sqrt(fan_in), vectors whose name ends in norm-like words are 1 + noise.
class RandomParameters : public ParameterSource {
 public:
  /// Drawn on the CPU, so that they are the same wherever they go to.
  RandomParameters(uint64_t seed, WeightOptions options, double scale = 1.0);
  /// Drawn where the generator is, in a fraction of the time on a GPU.
  RandomParameters(at::Generator generator, WeightOptions options, double scale = 1.0);
  at::Tensor get(const std::string& name, at::IntArrayRef shape, bool keep_fp32 = false) override;
  bool has(const std::string&) const override { return true; }
  /// Parameters handed out so far.
  int64_t count() const { return count_; }

 private:
  at::Generator generator_;
  WeightOptions options_;
  double scale_;
  int64_t count_ = 0;
};

using TensorMap = std::map<std::string, at::Tensor>;

/// One tensor of an open file, on the CPU, in its stored dtype.
at::Tensor load_tensor(const SafetensorsFile& file, const StoredTensor& stored);
/// Every tensor of one safetensors file, on the CPU, in its stored dtype.
TensorMap load_tensors(const fs::path& path);
/// Writes one safetensors file (beside, fsync, rename); tensors are moved to the CPU.
void save_tensors(const fs::path& path, const TensorMap& tensors, bool overwrite,
                  const std::map<std::string, std::string>& metadata = {});

}  // namespace fovea
