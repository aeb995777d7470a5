#pragma once

#include <string>
#include <vector>

#include <c10/core/Device.h>

#include "core/file.h"
#include "core/json.h"

namespace fovea::apps {

/// A tensor that an operator reads or writes, by its name in a safetensors file.
struct OpTensor {
  std::string name;
  std::string help;  ///< shape and dtype
  bool required = true;
};

/// An argument that `--set NAME=VALUE` gives, of the type that the operator's schema says.
struct OpOption {
  std::string name;
  std::string help;
  /// As text; "none" where absence means something of its own, nothing where it must be given.
  std::string default_value;
};

/// One operator of TORCH_LIBRARY(fovea) as `fovea op` offers it.
struct OpEntry {
  std::string name;
  std::string help;
  std::vector<OpTensor> inputs;
  std::vector<OpTensor> outputs;  ///< in the order of the schema
  std::vector<OpOption> options;
};

/// All operators, in the order they are listed.
const std::vector<OpEntry>& op_table();

/// The table as text for a terminal, or as JSON.
std::string list_ops();
Json list_ops_json();

/// What `fovea op NAME` was asked to do.
struct OpRun {
  std::string name;
  fs::path in;                        ///< safetensors file with the inputs by name
  fs::path out;                       ///< safetensors file that gets the outputs
  std::vector<std::string> settings;  ///< "key=value"
  bool overwrite = false;
  c10::Device device = c10::kCPU;
};

/// Runs one operator through LibTorch's registry; the dtypes stored in the file decide how it
/// computes.
///
/// throws  Error usage for an unknown operator (with the list) or setting, conflict when the output
///         exists, bad_data naming the tensor that is missing, unknown, or of a wrong shape or
///         dtype
void run_op(const OpRun& run);

}  // namespace fovea::apps
