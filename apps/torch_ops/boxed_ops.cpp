#include "apps/torch_ops/boxed_ops.h"

#include <algorithm>
#include <memory>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include "core/check.h"

namespace fovea::apps {
namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

constexpr const char* kDifferentiable[] = {
    "q",         "k", "v",       "params",  "bias",      "extra_k",   "extra_v", "proj_weight",
    "proj_bias", "x", "w_local", "b_local", "w_dilated", "b_dilated", "w_point", "b_point"};

std::vector<IValue> take_values(const c10::FunctionSchema& schema, Stack& stack) {
  const auto first = stack.end() - static_cast<std::ptrdiff_t>(schema.arguments().size());
  std::vector<IValue> values(first, stack.end());
  stack.erase(first, stack.end());
  return values;
}

// Where differentiable tensors are among an operator's arguments: argument and, in a list, number.
struct Place {
  size_t argument;
  int64_t number;  // -1: no list
};

std::vector<Place> differentiable_places(const c10::FunctionSchema& schema,
                                         const std::vector<IValue>& values) {
  std::vector<Place> places;
  for (const char* name : kDifferentiable) {
    const auto index = schema.argumentIndexWithName(name);
    if (!index) continue;
    const auto argument = static_cast<size_t>(*index);
    if (values[argument].isTensor()) places.push_back({argument, -1});
    if (!values[argument].isTensorList()) continue;
    const auto count = static_cast<int64_t>(values[argument].toTensorList().size());
    for (int64_t i = 0; i < count; ++i) places.push_back({argument, i});
  }
  return places;
}

Tensor tensor_at(const std::vector<IValue>& values, const Place& place) {
  const IValue& value = values[place.argument];
  if (place.number < 0) return value.toTensor();
  return value.toTensorList().get(static_cast<size_t>(place.number));
}

void put_tensor(std::vector<IValue>& values, const Place& place, const Tensor& tensor) {
  if (place.number < 0) {
    values[place.argument] = tensor;
    return;
  }
  // Lists are shared by their copies.
  c10::List<Tensor> list = values[place.argument].toTensorList().copy();
  list.set(static_cast<size_t>(place.number), tensor);
  values[place.argument] = list;
}

// Records gradients also where dispatch is below autograd.
class WithAutograd {
 public:
  WithAutograd() : guard_(included(), excluded()), grad_mode_(true) {}

 private:
  static c10::DispatchKeySet included() {
    return c10::impl::tls_local_dispatch_key_set().included_;
  }
  static c10::DispatchKeySet excluded() {
    return c10::impl::tls_local_dispatch_key_set().excluded_ - c10::autograd_dispatch_keyset -
           c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView);
  }

  c10::impl::ForceDispatchKeyGuard guard_;
  c10::AutoGradMode grad_mode_;
};

c10::OperatorHandle backward_of(const c10::OperatorHandle& op) {
  const std::string name = op.schema().name() + "_backward";
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

size_t num_gradients(const c10::OperatorHandle& op, const c10::OperatorHandle& backward) {
  return backward.schema().arguments().size() - op.schema().arguments().size();
}

// Calls OP_backward with the arguments that OP had.
struct BackwardNode : torch::autograd::Node {
  BackwardNode(const c10::OperatorHandle& op, std::vector<IValue> arguments,
               std::vector<Place> tensors)
      : op(op), values(std::move(arguments)), places(std::move(tensors)) {
    for (const Place& place : places) {
      saved.emplace_back(tensor_at(values, place), /*is_output=*/false);
      put_tensor(values, place, Tensor());
    }
  }

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    std::vector<IValue> given = values;
    for (size_t i = 0; i < places.size(); ++i) put_tensor(given, places[i], saved[i].unpack());
    Stack stack;
    const c10::OperatorHandle backward = backward_of(op);
    for (size_t i = 0; i < num_gradients(op, backward); ++i) {
      stack.emplace_back(gradients[i].defined() ? gradients[i] : input_metadata(i).zeros_like());
    }
    stack.insert(stack.end(), given.begin(), given.end());
    backward.callBoxed(stack);
    return stack.at(0).toTensorVector();
  }
  void release_variables() override {
    for (auto& variable : saved) variable.reset_data();
  }
  std::string name() const override { return "FoveaBackward"; }

  c10::OperatorHandle op;
  std::vector<IValue> values;  // without the differentiable tensors
  std::vector<Place> places;
  std::vector<torch::autograd::SavedVariable> saved;  // at those places
};

}  // namespace

const IValue& Arguments::value(const char* name) const {
  const auto index = schema_.argumentIndexWithName(name);
  FOVEA_ASSERT(index.has_value(), "no argument ", name);
  return values_[static_cast<size_t>(*index)];
}

Tensor Arguments::tensor(const char* name) const {
  const IValue& found = value(name);
  return found.isNone() ? Tensor() : found.toTensor();
}

std::vector<bool> Arguments::flags(const char* name) const {
  const c10::List<bool> list = value(name).toBoolList();
  return {list.begin(), list.end()};
}

std::optional<double> Arguments::number(const char* name) const {
  const IValue& found = value(name);
  return found.isNone() ? std::nullopt : std::optional<double>(found.toDouble());
}

Arguments take_arguments(const c10::OperatorHandle& op, Stack* stack) {
  return Arguments(op.schema(), take_values(op.schema(), *stack));
}

void run_backward(const c10::OperatorHandle& op, Stack* stack, Compute compute) {
  std::vector<IValue> values = take_values(op.schema(), *stack);
  const std::vector<Place> places = differentiable_places(op.schema(), values);
  const WithAutograd with_autograd;
  std::vector<Tensor> leaves;
  for (const Place& place : places) {
    leaves.push_back(tensor_at(values, place).detach().requires_grad_());
    put_tensor(values, place, leaves.back());
  }
  std::vector<Tensor> results = compute(Arguments(op.schema(), values));
  std::vector<Tensor> given;
  for (size_t i = 0; i < results.size() && at::isFloatingType(results[i].scalar_type()); ++i) {
    given.push_back(values[i].toTensor());
  }
  results.resize(given.size());
  const std::vector<Tensor> gradients =
      torch::autograd::grad(results, leaves, given, /*retain_graph=*/false,
                            /*create_graph=*/false, /*allow_unused=*/true);
  c10::List<Tensor> out;
  for (size_t i = 0; i < leaves.size(); ++i) {
    out.push_back(gradients[i].defined() ? gradients[i].contiguous()
                                         : at::zeros(leaves[i].sizes(), leaves[i].options()));
  }
  stack->emplace_back(std::move(out));
}

void backward_meta(const c10::OperatorHandle& op, Stack* stack) {
  const std::vector<IValue> values = take_values(op.schema(), *stack);
  c10::List<Tensor> out;
  for (const Place& place : differentiable_places(op.schema(), values)) {
    const Tensor input = tensor_at(values, place);
    out.push_back(at::empty_symint(input.sym_sizes(), input.options()));
  }
  stack->emplace_back(std::move(out));
}

void with_backward(const c10::OperatorHandle& op, Stack* stack) {
  std::vector<IValue> values = take_values(op.schema(), *stack);
  std::vector<Place> places = differentiable_places(op.schema(), values);
  std::vector<Tensor> inputs;
  for (const Place& place : places) inputs.push_back(tensor_at(values, place));
  const bool wanted = c10::GradMode::is_enabled() &&
                      std::any_of(inputs.begin(), inputs.end(),
                                  [](const Tensor& input) { return input.requires_grad(); });
  stack->insert(stack->end(), values.begin(), values.end());
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.callBoxed(*stack);
  }
  if (!wanted) return;
  const std::shared_ptr<BackwardNode> node(
      new BackwardNode(op, std::move(values), std::move(places)), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  const size_t results = op.schema().returns().size();
  for (size_t i = 0; i < num_gradients(op, backward_of(op)); ++i) {
    IValue& result = (*stack)[stack->size() - results + i];
    Tensor tensor = result.toTensor();
    torch::autograd::set_history(tensor, node);
    result = tensor;
  }
}

void define_with_backward(torch::Library& m, const std::string& name, const std::string& arguments,
                          const std::string& returns, const std::string& gradients) {
  m.def((name + "(" + arguments + ") -> " + returns).c_str());
  m.def((name + "_backward(" + gradients + ", " + arguments + ") -> Tensor[]").c_str());
}

void implement_autograd(torch::Library& m, const std::string& name) {
  m.impl(name.c_str(), boxed<with_backward>());
  m.impl((name + "_backward").c_str(), torch::autograd::autogradNotImplementedFallback());
}

}  // namespace fovea::apps
