#pragma once

#include <optional>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/core/boxing/KernelFunction.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>
#include <ATen/core/stack.h>
#include <torch/library.h>

// Operators with gradients from one function each. Their kernels are boxed: they read arguments by
// the names of the schema, and one for Autograd serves them all.
//
// OP_backward takes the gradients of OP's first results, as many as OP has floating-point ones, and
// all of OP's arguments. It returns one gradient for each argument of `differentiable` that is
// given, in the order of that list, contiguous.

namespace fovea::apps {

/// The arguments of one call of an operator, by the names of its schema.
class Arguments {
 public:
  Arguments(const c10::FunctionSchema& schema, std::vector<c10::IValue> values)
      : schema_(schema), values_(std::move(values)) {}

  const c10::IValue& value(const char* name) const;
  at::Tensor tensor(const char* name) const;  ///< undefined where it was left out
  std::vector<at::Tensor> tensors(const char* name) const { return value(name).toTensorVector(); }
  std::string text(const char* name) const { return value(name).toStringRef(); }
  int64_t integer(const char* name) const { return value(name).toInt(); }
  std::vector<int64_t> integers(const char* name) const { return value(name).toIntVector(); }
  std::vector<bool> flags(const char* name) const;
  bool flag(const char* name) const { return value(name).toBool(); }
  std::optional<double> number(const char* name) const;

 private:
  const c10::FunctionSchema& schema_;
  std::vector<c10::IValue> values_;
};

/// What an operator computes, with LibTorch's autograd where that records; its results.
using Compute = std::vector<at::Tensor> (*)(const Arguments&);

/// Takes an operator's arguments from the stack.
Arguments take_arguments(const c10::OperatorHandle& op, torch::jit::Stack* stack);

template <void (*kernel)(const c10::OperatorHandle&, torch::jit::Stack*)>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunction<kernel>();
}

/// Kernels of a backend.
template <Compute compute>
void run_op(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  for (const at::Tensor& result : compute(take_arguments(op, stack))) {
    stack->emplace_back(result.contiguous());
  }
}
void run_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack, Compute compute);
template <Compute compute>
void run_backward_op(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  run_backward(op, stack, compute);
}

/// For Meta: gradients have the shapes of their arguments.
void backward_meta(const c10::OperatorHandle& op, torch::jit::Stack* stack);

/// For Autograd: runs the operator below it, and OP_backward as its gradient.
void with_backward(const c10::OperatorHandle& op, torch::jit::Stack* stack);

/// Defines "NAME(ARGUMENTS) -> RETURNS" and its backward.
///
/// gradients  arguments of the backward for the gradients of results, such as "Tensor grad_out"
void define_with_backward(torch::Library& m, const std::string& name, const std::string& arguments,
                          const std::string& returns, const std::string& gradients);

template <Compute compute>
void implement_with_backward(torch::Library& m, const std::string& name) {
  m.impl(name.c_str(), boxed<run_op<compute>>());
  m.impl((name + "_backward").c_str(), boxed<run_backward_op<compute>>());
}

/// Autograd kernels of an operator and of its backward, which has no derivative.
void implement_autograd(torch::Library& m, const std::string& name);

}  // namespace fovea::apps
