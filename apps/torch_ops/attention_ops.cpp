// Attention as operators of torch.ops.fovea. Their kernels are boxed: one for each backend, one for
// Meta and one for Autograd serve them all, and read arguments by the names of the schema.
//
// OP_backward takes the gradients of OP's results and all of OP's arguments. It returns one
// gradient for each argument of `kDifferentiable` that is given, in their order, contiguous.

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include "apps/torch_ops/attention_problems.h"
#include "core/attention/lower.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

using at::Tensor;
using c10::IValue;
using torch::jit::Stack;

constexpr const char* kDifferentiable[] = {"q", "k", "v", "params", "bias", "extra_k", "extra_v"};
constexpr size_t kResults = 2;  // out and lse; as many gradients lead a backward's arguments

const std::string kAttention =
    "Tensor q, Tensor k, Tensor v, Tensor? block_mask=None, int[2] block=[128, 128], "
    "float? scale=None, str precision=\"auto\", str executor=\"auto\", *, Tensor? q_order=None, "
    "Tensor? kv_order=None, Tensor? q_offsets=None, Tensor? kv_offsets=None, Tensor? kv_len=None, "
    "Tensor? bias=None, bool is_causal=False";
const std::string kNeighborhood =
    "Tensor q, Tensor k, Tensor v, int[] size, int[] window, int[] stride, int[] dilation, "
    "bool[] causal, float? scale=None, *, Tensor? bias=None, Tensor? extra_k=None, "
    "Tensor? extra_v=None";
const std::string kPlanned =
    "Tensor q, Tensor k, Tensor v, Tensor[] params, str planner, int[3] grid, int text_len=0, "
    "bool text_first=False, str options=\"\", float? scale=None, str executor=\"auto\"";
const std::string kPlan =
    "str planner, Tensor q, Tensor k, int[3] grid, int text_len, str options=\"\", *, "
    "bool text_first=False, int step=0, int layer=0, int seed=0";

using MakeProblem = AttentionProblem (*)(const Arguments&);

std::vector<IValue> take_arguments(const c10::FunctionSchema& schema, Stack& stack) {
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

AttentionResult solve(const AttentionProblem& problem) {
  return run_plan(problem.plan, problem.call, problem.executor);
}

template <MakeProblem make>
void forward(const c10::OperatorHandle& op, Stack* stack) {
  const Arguments arguments(op.schema(), take_arguments(op.schema(), *stack));
  const AttentionResult result = solve(make(arguments));
  stack->emplace_back(result.out.contiguous());
  stack->emplace_back(result.lse.contiguous());
}

void forward_meta(const c10::OperatorHandle& op, Stack* stack) {
  const Arguments arguments(op.schema(), take_arguments(op.schema(), *stack));
  const Tensor q = arguments.tensor("q"), v = arguments.tensor("v");
  const auto dtype = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const c10::SymInt batch = q.sym_size(0), heads = q.sym_size(1), q_len = q.sym_size(2);
  stack->emplace_back(at::empty_symint({batch, heads, q_len, v.sym_size(3)}, q.options()));
  stack->emplace_back(at::empty_symint({batch, heads, q_len}, q.options().dtype(dtype)));
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

c10::OperatorHandle operator_of(const std::string& name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
}

template <MakeProblem make>
void backward(const c10::OperatorHandle& op, Stack* stack) {
  std::vector<IValue> values = take_arguments(op.schema(), *stack);
  const std::vector<Place> places = differentiable_places(op.schema(), values);
  const WithAutograd with_autograd;
  std::vector<Tensor> leaves;
  for (const Place& place : places) {
    leaves.push_back(tensor_at(values, place).detach().requires_grad_());
    put_tensor(values, place, leaves.back());
  }
  const std::vector<Tensor> given = {values[0].toTensor(), values[1].toTensor()};
  const AttentionResult result = solve(make(Arguments(op.schema(), values)));
  const std::vector<Tensor> gradients =
      torch::autograd::grad({result.out, result.lse}, leaves, given, /*retain_graph=*/false,
                            /*create_graph=*/false, /*allow_unused=*/true);
  c10::List<Tensor> out;
  for (size_t i = 0; i < leaves.size(); ++i) {
    out.push_back(gradients[i].defined() ? gradients[i].contiguous()
                                         : at::zeros(leaves[i].sizes(), leaves[i].options()));
  }
  stack->emplace_back(std::move(out));
}

void backward_meta(const c10::OperatorHandle& op, Stack* stack) {
  const std::vector<IValue> values = take_arguments(op.schema(), *stack);
  c10::List<Tensor> out;
  for (const Place& place : differentiable_places(op.schema(), values)) {
    const Tensor input = tensor_at(values, place);
    out.push_back(at::empty_symint(input.sym_sizes(), input.options()));
  }
  stack->emplace_back(std::move(out));
}

// Calls OP_backward with the arguments that OP had.
struct AttentionNode : torch::autograd::Node {
  AttentionNode(const c10::OperatorHandle& op, std::vector<IValue> arguments,
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
    for (size_t i = 0; i < kResults; ++i) {
      stack.emplace_back(gradients[i].defined() ? gradients[i] : input_metadata(i).zeros_like());
    }
    stack.insert(stack.end(), given.begin(), given.end());
    operator_of(op.schema().name() + "_backward").callBoxed(stack);
    return stack.at(0).toTensorVector();
  }
  void release_variables() override {
    for (auto& variable : saved) variable.reset_data();
  }
  std::string name() const override { return "FoveaAttentionBackward"; }

  c10::OperatorHandle op;
  std::vector<IValue> values;  // without the differentiable tensors
  std::vector<Place> places;
  std::vector<torch::autograd::SavedVariable> saved;  // at those places
};

void forward_autograd(const c10::OperatorHandle& op, Stack* stack) {
  std::vector<IValue> values = take_arguments(op.schema(), *stack);
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
  const std::shared_ptr<AttentionNode> node(
      new AttentionNode(op, std::move(values), std::move(places)), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  for (IValue& result : *stack) {
    Tensor tensor = result.toTensor();
    torch::autograd::set_history(tensor, node);
    result = tensor;
  }
}

// What of a plan the first softmax computes, as a class for each pair of blocks; pairs of blocks
// that predicates cut count as exact.
Tensor block_classes(const AttentionProblem& problem, const SoftmaxBranch& branch) {
  const Selection& selection = branch.selection;
  if (selection.classes.defined() && selection.predicates.empty()) return selection.classes;
  std::vector<Tensor> items;
  const int64_t count = lists_differ(problem.plan, branch) ? problem.call.q.size(0) : 1;
  for (int64_t item = 0; item < count; ++item) {
    const HostLists lists = lower_to_lists(problem.plan, branch, problem.call, item);
    const int64_t rows = lists.maps * lists.num_q_blocks;
    Tensor classes = at::zeros({rows, lists.num_kv_blocks}, at::kByte);
    auto* data = classes.mutable_data_ptr<uint8_t>();
    // Each map has one entry of row_ptr more than rows.
    for (int64_t row = 0; row < rows; ++row) {
      const auto at = static_cast<size_t>(row + row / lists.num_q_blocks);
      for (int64_t entry = lists.row_ptr[at]; entry < lists.row_ptr[at + 1]; ++entry) {
        data[row * lists.num_kv_blocks + lists.kv_index[static_cast<size_t>(entry)]] =
            block_class::exact;
      }
    }
    items.push_back(classes.view({lists.maps, lists.num_q_blocks, lists.num_kv_blocks}));
  }
  return at::stack(items).to(problem.call.q.device());
}

void plan(const c10::OperatorHandle& op, Stack* stack) {
  const AttentionProblem problem =
      planner_problem(Arguments(op.schema(), take_arguments(op.schema(), *stack)));
  const AttentionCall& call = problem.call;
  const at::Device device = call.q.device();
  const auto* branch = std::get_if<SoftmaxBranch>(&problem.plan.branches[0].kind);
  require(branch != nullptr && !branch->keys, ErrorCode::usage, "plan", "the first branch of ",
          problem.plan.planner, " has no blocks of the call's keys");
  const Selection& selection = branch->selection;
  const bool mapped = selection.classes.defined();
  const BlockAxis q_blocks = mapped ? selection.q_blocks : default_blocks(call.q_layout);
  const BlockAxis kv_blocks = mapped ? selection.kv_blocks : default_blocks(call.kv_layout);
  stack->emplace_back(problem.plan.q_order.rows(call.q_layout, device).to(at::kInt).contiguous());
  stack->emplace_back(problem.plan.kv_order.rows(call.kv_layout, device).to(at::kInt).contiguous());
  stack->emplace_back(block_classes(problem, *branch).contiguous());
  stack->emplace_back(q_blocks.offsets(device).to(at::kInt).contiguous());
  stack->emplace_back(kv_blocks.offsets(device).to(at::kInt).contiguous());
}

void plan_text(const c10::OperatorHandle& op, Stack* stack) {
  const AttentionProblem problem =
      planner_problem(Arguments(op.schema(), take_arguments(op.schema(), *stack)));
  stack->emplace_back(problem.plan.describe());
}

template <void (*function)(const c10::OperatorHandle&, Stack*)>
torch::CppFunction boxed() {
  return torch::CppFunction::makeFromBoxedFunction<function>();
}

void define(torch::Library& m, const std::string& name, const std::string& arguments) {
  m.def((name + "(" + arguments + ") -> (Tensor out, Tensor lse)").c_str());
  m.def((name + "_backward(Tensor grad_out, Tensor grad_lse, " + arguments + ") -> Tensor[]")
            .c_str());
}

template <MakeProblem make>
void implement(torch::Library& m, const char* name) {
  m.impl(name, boxed<forward<make>>());
  m.impl((std::string(name) + "_backward").c_str(), boxed<backward<make>>());
}

void implement_all(torch::Library& m) {
  implement<block_attention_problem>(m, "attention");
  implement<neighborhood_problem>(m, "neighborhood_attention");
  implement<planned_problem>(m, "planned_attention");
  m.impl("plan", boxed<plan>());
  m.impl("plan_text", boxed<plan_text>());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fovea, m) {
  define(m, "attention", kAttention);
  define(m, "neighborhood_attention", kNeighborhood);
  define(m, "planned_attention", kPlanned);
  m.def(("plan(" + kPlan +
         ") -> (Tensor q_order, Tensor kv_order, Tensor block_mask, Tensor q_offsets, "
         "Tensor kv_offsets)")
            .c_str());
  m.def(("plan_text(" + kPlan + ") -> str").c_str());
}

TORCH_LIBRARY_IMPL(fovea, CPU, m) { implement_all(m); }
TORCH_LIBRARY_IMPL(fovea, CUDA, m) { implement_all(m); }

TORCH_LIBRARY_IMPL(fovea, Meta, m) {
  for (const std::string name : {"attention", "neighborhood_attention", "planned_attention"}) {
    m.impl(name.c_str(), boxed<forward_meta>());
    m.impl((name + "_backward").c_str(), boxed<backward_meta>());
  }
}

TORCH_LIBRARY_IMPL(fovea, Autograd, m) {
  for (const std::string name : {"attention", "neighborhood_attention", "planned_attention"}) {
    m.impl(name.c_str(), boxed<forward_autograd>());
    m.impl((name + "_backward").c_str(), torch::autograd::autogradNotImplementedFallback());
  }
}

}  // namespace fovea::apps
