#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <torch/library.h>

#include "apps/torch_ops/boxed_ops.h"
#include "core/attention/functional.h"
#include "core/attention/planners/sla.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

const std::string kName = "sparse_linear_attention";
const std::string kArguments =
    "Tensor q, Tensor k, Tensor v, Tensor proj_weight, Tensor proj_bias, float density, "
    "int[2] block, str feature_map=\"softmax\", str linear_over=\"unselected\", *, "
    "Tensor? block_mask=None";

SlaOptions options_of(const Arguments& arguments) {
  SlaOptions options;
  options.density = *arguments.number("density");
  require(options.density > 0 && options.density <= 1, ErrorCode::usage, kName, "a density of ",
          options.density, ": a share up to 1 expected");
  const std::vector<int64_t> block = arguments.integers("block");
  require(block.size() == 2 && block[0] >= 1 && block[1] >= 1, ErrorCode::usage, kName,
          "expected two sizes of a block");
  options.blocks = {.q = block[0], .kv = block[1], .tile = {}};
  options.feature_map = feature_map_of(arguments.text("feature_map"));
  const std::string over = arguments.text("linear_over");
  require(over == "unselected" || over == "all", ErrorCode::usage, kName, "linear_over '",
          printable(over), "': unselected or all expected");
  options.linear_over_all = over == "all";
  return options;
}

std::vector<at::Tensor> compute(const Arguments& arguments) {
  AttentionCall call;
  call.q = arguments.tensor("q");
  call.k = arguments.tensor("k");
  call.v = arguments.tensor("v");
  require(call.q.dim() == 4 && call.k.dim() == 4, ErrorCode::bad_data, kName,
          "expected q, k and v [batch, heads, tokens, channels]");
  call.q_layout = TokenLayout::sequence(call.q.size(2));
  call.kv_layout = TokenLayout::sequence(call.k.size(2));
  check_call(call);
  const AttentionPlan plan =
      sla_plan(call, options_of(arguments), arguments.tensor("proj_weight"),
               arguments.tensor("proj_bias"), arguments.tensor("block_mask"));
  const at::Tensor& classes = std::get<SoftmaxBranch>(plan.branches[0].kind).selection.classes;
  return {run_plan(plan, call).out, classes.ne(block_class::skip)};
}

void meta(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const Arguments arguments = take_arguments(op, stack);
  const at::Tensor q = arguments.tensor("q"), k = arguments.tensor("k");
  const at::Tensor v = arguments.tensor("v"), mask = arguments.tensor("block_mask");
  const c10::SymInt batch = q.sym_size(0), heads = q.sym_size(1);
  stack->emplace_back(at::empty_symint({batch, heads, q.sym_size(2), v.sym_size(3)}, q.options()));
  const at::TensorOptions options = q.options().dtype(at::kBool);
  if (mask.defined()) {
    stack->emplace_back(at::empty_symint(mask.sym_sizes(), options));
    return;
  }
  const std::vector<int64_t> block = arguments.integers("block");
  const auto blocks = [](const c10::SymInt& tokens, int64_t size) {
    return (tokens + (size - 1)) / size;
  };
  stack->emplace_back(at::empty_symint(
      {batch, heads, blocks(q.sym_size(2), block[0]), blocks(k.sym_size(2), block[1])}, options));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(fovea, m) {
  define_with_backward(m, kName, kArguments, "(Tensor out, Tensor block_mask)", "Tensor grad_out");
}
TORCH_LIBRARY_IMPL(fovea, CPU, m) { implement_with_backward<compute>(m, kName); }
TORCH_LIBRARY_IMPL(fovea, CUDA, m) { implement_with_backward<compute>(m, kName); }
TORCH_LIBRARY_IMPL(fovea, Meta, m) {
  m.impl(kName.c_str(), boxed<meta>());
  m.impl((kName + "_backward").c_str(), boxed<backward_meta>());
}
TORCH_LIBRARY_IMPL(fovea, Autograd, m) { implement_autograd(m, kName); }

}  // namespace fovea::apps
