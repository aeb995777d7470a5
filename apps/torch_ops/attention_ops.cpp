// Attention as operators of torch.ops.fovea.

#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/library.h>

#include "apps/torch_ops/attention_problems.h"
#include "apps/torch_ops/boxed_ops.h"
#include "core/attention/lower.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

using at::Tensor;
using torch::jit::Stack;

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

template <AttentionProblem (*make)(const Arguments&)>
std::vector<Tensor> attend(const Arguments& arguments) {
  const AttentionProblem problem = make(arguments);
  const AttentionResult result = run_plan(problem.plan, problem.call, problem.executor);
  return {result.out, result.lse};
}

// As far as the sizes are numbers yet.
void check_shapes(const Tensor& q, const Tensor& k, const Tensor& v) {
  for (const Tensor* x : {&q, &k, &v}) {
    require(x->is_meta(), ErrorCode::bad_data, "attention", "expected q, k and v on one device");
    require(x->dim() == 4, ErrorCode::bad_data, "attention",
            "expected q, k and v [batch, heads, tokens, channels], got ", x->dim(), " axes");
    if (x->unsafeGetTensorImpl()->has_symbolic_sizes_strides()) return;
  }
  check_call({.q_layout = TokenLayout::sequence(q.size(2)),
              .kv_layout = TokenLayout::sequence(k.size(2)),
              .q = q,
              .k = k,
              .v = v});
}

void attend_meta(const c10::OperatorHandle& op, Stack* stack) {
  const Arguments arguments = take_arguments(op, stack);
  const Tensor q = arguments.tensor("q"), k = arguments.tensor("k"), v = arguments.tensor("v");
  check_shapes(q, k, v);
  const auto dtype = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const c10::SymInt batch = q.sym_size(0), heads = q.sym_size(1), q_len = q.sym_size(2);
  stack->emplace_back(at::empty_symint({batch, heads, q_len, v.sym_size(3)}, q.options()));
  stack->emplace_back(at::empty_symint({batch, heads, q_len}, q.options().dtype(dtype)));
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
  const AttentionProblem problem = planner_problem(take_arguments(op, stack));
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
  const AttentionProblem problem = planner_problem(take_arguments(op, stack));
  stack->emplace_back(problem.plan.describe());
}

void implement_all(torch::Library& m) {
  implement_with_backward<attend<block_attention_problem>>(m, "attention");
  implement_with_backward<attend<neighborhood_problem>>(m, "neighborhood_attention");
  implement_with_backward<attend<planned_problem>>(m, "planned_attention");
  m.impl("plan", boxed<plan>());
  m.impl("plan_text", boxed<plan_text>());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fovea, m) {
  const auto define = [&](const char* name, const std::string& arguments) {
    define_with_backward(m, name, arguments, "(Tensor out, Tensor lse)",
                         "Tensor grad_out, Tensor grad_lse");
  };
  define("attention", kAttention);
  define("neighborhood_attention", kNeighborhood);
  define("planned_attention", kPlanned);
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
    m.impl(name.c_str(), boxed<attend_meta>());
    m.impl((name + "_backward").c_str(), boxed<backward_meta>());
  }
}

TORCH_LIBRARY_IMPL(fovea, Autograd, m) {
  for (const char* name : {"attention", "neighborhood_attention", "planned_attention"}) {
    implement_autograd(m, name);
  }
}

}  // namespace fovea::apps
