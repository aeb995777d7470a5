#pragma once

#include <memory>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/weights.h"

namespace fovea::pipelines {

/// How the parameters of a network that is being trained are kept.
struct TrainableOptions {
  /// Type the network computes in. A half type keeps a copy beside the fp32 master weights; fp64
  /// has fp64 master weights.
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;
  /// Convolution weights in the channels-last format, which activations then follow.
  bool channels_last = false;
};

/// The parameters of one or more networks in training, all in one row: master weights, gradients
/// and whatever an optimizer remembers are flat tensors of the same order, so that a step over
/// them costs a few kernels and a reduction over processes one message.
///
/// A network takes its parameters from `component(...)`; once all networks are built, `finish`
/// joins them. Parameters of two or more dimensions come first in each half: weight decay is for
/// those only.
class TrainableParameters {
 public:
  explicit TrainableParameters(TrainableOptions options) : options_(options) {}

  /// Source of one network's parameters, called "NAME/parameter" here; `initial` (fp32 or fp64, on
  /// the CPU) gives their first values. Lives as long as this object.
  ParameterSource& component(const std::string& name, ParameterSource& initial);
  /// Joins all parameters; no more can be asked for.
  void finish();

  int64_t numel() const { return numel_; }
  const TrainableOptions& options() const { return options_; }
  at::Tensor& master() { return master_; }      ///< [numel] fp32 or fp64
  at::Tensor& gradient() { return gradient_; }  ///< [numel], master's dtype
  /// Parts [begin, end) of the row that weight decay shrinks, and those it leaves.
  struct Range {
    int64_t begin, end;
    bool decays;
  };
  const std::vector<Range>& ranges() const { return ranges_; }

  /// Copies master weights into the half-type parameters.
  void publish();
  /// Sets all gradients to 0, before the first backward pass of a step.
  void clear_gradients();
  /// Adds what the last backward pass left in half-type gradients to `gradient`.
  void collect_gradients();

  /// Parts of `row` (in the order of `master`) by name, in their shapes: views.
  TensorMap split(const at::Tensor& row) const;
  /// The same for one component, without its name, contiguous.
  TensorMap split(const at::Tensor& row, const std::string& component) const;
  /// Copies tensors by name into `row`. throws Error bad_data: missing, spare or of another shape
  void join(at::Tensor& row, const TensorMap& tensors, const std::string& where) const;

 private:
  class Component;
  struct Slot {
    std::string name;
    at::Tensor parameter;
    int64_t begin = 0;
  };
  at::Tensor add(const std::string& name, const at::Tensor& initial, bool keep_fp32);
  at::Tensor view(const at::Tensor& row, const Slot& slot, int64_t row_begin = 0) const;
  bool is_half(const Slot& slot) const;

  TrainableOptions options_;
  std::vector<std::unique_ptr<ParameterSource>> components_;
  std::vector<Slot> slots_;
  std::vector<Range> ranges_;
  int64_t numel_ = 0;
  int64_t num_half_ = 0;  // the first so many elements have half-type parameters
  at::Tensor master_, gradient_;
  at::Tensor half_, half_gradient_;  // [num_half], or undefined
};

}  // namespace fovea::pipelines
