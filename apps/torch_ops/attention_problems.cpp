#include "apps/torch_ops/attention_problems.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea::apps {
namespace {

// The tensors of a call; its layouts are to be set.
AttentionCall call_of(const Arguments& arguments) {
  AttentionCall call;
  call.q = arguments.tensor("q");
  call.k = arguments.tensor("k");
  call.v = arguments.tensor("v");
  call.sm_scale = arguments.number("scale");
  call.needs_lse = true;
  for (const at::Tensor* x : {&call.q, &call.k, &call.v}) {
    require(x->dim() == 4, ErrorCode::bad_data, "attention",
            "expected q, k and v [batch, heads, tokens, channels], got ", x->sizes());
  }
  return call;
}

at::Tensor as_bias(const at::Tensor& bias) {
  if (!bias.defined()) return bias;
  require(bias.dim() <= 4, ErrorCode::bad_data, "attention", "a bias of ", bias.dim(), " axes");
  at::Tensor out = bias;
  while (out.dim() < 4) out = out.unsqueeze(0);
  return out;
}

// [.., tokens] with one or three axes
at::Tensor per_item_and_head(const at::Tensor& x, const char* name) {
  require(x.dim() == 1 || x.dim() == 3, ErrorCode::bad_data, "attention", "tensor '", name,
          "': expected [batch or 1, heads or 1, n], got shape ", x.sizes());
  return x.dim() == 3 ? x : x.view({1, 1, -1});
}

BlockAxis axis_of(const Arguments& arguments, const char* offsets, const TokenLayout& layout,
                  int64_t size) {
  const at::Tensor given = arguments.tensor(offsets);
  if (!given.defined()) return BlockAxis::uniform(layout, size);
  return BlockAxis::from_offsets(per_item_and_head(given, offsets), layout.seq_len());
}

TokenOrder order_of(const Arguments& arguments, const char* name) {
  const at::Tensor rows = arguments.tensor(name);
  return rows.defined() ? TokenOrder::index(per_item_and_head(rows, name)) : TokenOrder();
}

TokenLayout video_layout(const std::vector<int64_t>& grid, int64_t text_len, bool text_first) {
  require(grid.size() == 3, ErrorCode::usage, "attention",
          "expected a grid of frames, height and width, got ", grid.size(), " sizes");
  TokenLayout layout = TokenLayout::grid(grid[0], grid[1], grid[2]);
  if (text_len == 0) return layout;
  const TokenLayout text = TokenLayout::text(text_len);
  return text_first ? TokenLayout(text).append(layout) : layout.append(text);
}

Json options_of(const std::string& text) {
  std::vector<std::string> parts;
  size_t begin = 0;
  while (begin < text.size()) {
    size_t end = std::min(text.find(',', begin), text.size());
    // A comma also separates the numbers of one option's list.
    while (end < text.size() &&
           text.substr(end + 1, text.find(',', end + 1) - end - 1).find('=') == std::string::npos) {
      end = std::min(text.find(',', end + 1), text.size());
    }
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parse_planner_options(parts, "options");
}

void make_plan(AttentionProblem& problem, const Arguments& arguments) {
  const auto planner =
      make_planner(arguments.text("planner"), options_of(arguments.text("options")));
  const size_t given = problem.call.params.size(), named = planner->param_names().size();
  require(given == 0 || given == named, ErrorCode::usage,
          "attention " + printable(arguments.text("planner")), "takes ", named,
          " parameters or none, got ", given);
  problem.plan = planner->plans(problem.call.role) ? planner->plan(problem.call)
                                                   : AttentionPlan::dense("dense");
}

Precision precision_of(const std::string& name) {
  Precision out;
  if (name == "int8_qk") {
    out.q = out.k = {.format = NumberFormat::int8, .unit = ScaleUnit::block};
    out.smooth_k = true;
  } else if (name == "fp8") {
    out.q = out.k = {.format = NumberFormat::e4m3, .unit = ScaleUnit::block};
    out.v = {.format = NumberFormat::e4m3, .unit = ScaleUnit::channel};
    out.p = {.format = NumberFormat::e4m3, .unit = ScaleUnit::head};
  } else {
    require(name == "auto", ErrorCode::usage, "attention", "unknown precision '", printable(name),
            "'; known: auto, int8_qk, fp8");
  }
  return out;
}

AttentionRole role_of(int64_t text_len) {
  return text_len > 0 ? AttentionRole::joint : AttentionRole::self;
}

}  // namespace

AttentionProblem block_attention_problem(const Arguments& arguments) {
  AttentionProblem problem;
  AttentionCall& call = problem.call = call_of(arguments);
  const std::vector<int64_t> block = arguments.integers("block");
  require(block.size() == 2, ErrorCode::usage, "attention", "expected two sizes of a block, got ",
          block.size());
  const at::Tensor kv_len = arguments.tensor("kv_len");
  call.q_layout = TokenLayout::sequence(call.q.size(2));
  call.kv_layout =
      TokenLayout::sequence(call.k.size(2), kv_len.defined() ? kv_len.to(at::kLong) : kv_len);
  call.bias = as_bias(arguments.tensor("bias"));
  problem.executor = arguments.text("executor");
  problem.plan = AttentionPlan::dense("attention");
  problem.plan.q_order = order_of(arguments, "q_order");
  problem.plan.kv_order = order_of(arguments, "kv_order");
  auto& branch = std::get<SoftmaxBranch>(problem.plan.branches[0].kind);
  branch.precision = precision_of(arguments.text("precision"));
  Selection& selection = branch.selection;
  if (arguments.flag("is_causal")) selection.predicates = {CausalPredicate{}};
  const at::Tensor mask = arguments.tensor("block_mask");
  if (!mask.defined() && branch.precision.is_storage()) return problem;
  selection.q_blocks = axis_of(arguments, "q_offsets", call.q_layout, block[0]);
  selection.kv_blocks = axis_of(arguments, "kv_offsets", call.kv_layout, block[1]);
  if (!mask.defined()) return problem;
  require(mask.scalar_type() == at::kBool || mask.scalar_type() == at::kByte, ErrorCode::bad_data,
          "attention", "tensor 'block_mask': expected bool or uint8, got ", mask.scalar_type());
  selection.classes = mask.to(at::kByte);
  if (branch.precision.is_storage()) selection.summaries = {Summary{.pool = 0, .log_count = true}};
  return problem;
}

AttentionProblem neighborhood_problem(const Arguments& arguments) {
  AttentionProblem problem;
  AttentionCall& call = problem.call = call_of(arguments);
  const auto size = arguments.integers("size"), window = arguments.integers("window");
  const auto stride = arguments.integers("stride"), dilation = arguments.integers("dilation");
  const std::vector<bool> causal = arguments.flags("causal");
  const size_t axes = size.size();
  require(axes >= 1 && axes <= 3 && window.size() == axes && stride.size() == axes &&
              dilation.size() == axes && causal.size() == axes,
          ErrorCode::usage, "neighborhood_attention",
          "expected one size, window, stride, dilation and causal for each of 1 to 3 axes");
  // Axes that are not there are the slow ones, of one token.
  std::array<int64_t, 3> grid = {1, 1, 1};
  WindowPredicate predicate;
  for (size_t i = 0; i < axes; ++i) {
    const size_t axis = 3 - axes + i;
    grid[axis] = size[i];
    predicate.axes[axis] = {
        .size = window[i], .stride = stride[i], .dilation = dilation[i], .causal = causal[i]};
    require(window[i] >= 1 && predicate.axes[axis].fits(size[i]), ErrorCode::usage,
            "neighborhood_attention", "axis ", i, ": a window of ", window[i], " with stride ",
            stride[i], " and dilation ", dilation[i], " does not fit ", size[i], " tokens");
  }
  call.q_layout = call.kv_layout = TokenLayout::grid(grid[0], grid[1], grid[2]);
  const at::Tensor extra_k = arguments.tensor("extra_k"), extra_v = arguments.tensor("extra_v");
  require(extra_k.defined() == extra_v.defined(), ErrorCode::usage, "neighborhood_attention",
          "extra_k and extra_v go together");
  if (extra_k.defined()) {
    require(extra_k.dim() == 4 && extra_v.dim() == 4, ErrorCode::bad_data, "neighborhood_attention",
            "extra keys are [batch, heads, tokens, channels]");
    call.k = at::cat({call.k, extra_k}, 2);
    call.v = at::cat({call.v, extra_v}, 2);
    call.kv_layout.append(TokenLayout::extra(extra_k.size(2)));
  }
  call.bias = as_bias(arguments.tensor("bias"));
  problem.executor = "auto";
  problem.plan = AttentionPlan::dense("neighborhood");
  std::get<SoftmaxBranch>(problem.plan.branches[0].kind).selection.predicates = {predicate};
  return problem;
}

AttentionProblem planned_problem(const Arguments& arguments) {
  AttentionProblem problem;
  problem.call = call_of(arguments);
  const int64_t text_len = arguments.integer("text_len");
  problem.call.role = role_of(text_len);
  problem.call.q_layout = problem.call.kv_layout =
      video_layout(arguments.integers("grid"), text_len, arguments.flag("text_first"));
  problem.call.params = arguments.value("params").toTensorVector();
  problem.executor = arguments.text("executor");
  check_call(problem.call);
  make_plan(problem, arguments);
  return problem;
}

AttentionProblem planner_problem(const Arguments& arguments) {
  AttentionProblem problem;
  AttentionCall& call = problem.call;
  call.q = arguments.tensor("q");
  call.k = call.v = arguments.tensor("k");
  const int64_t text_len = arguments.integer("text_len");
  call.role = role_of(text_len);
  call.q_layout = call.kv_layout =
      video_layout(arguments.integers("grid"), text_len, arguments.flag("text_first"));
  call.context.step = arguments.integer("step");
  call.context.seed = arguments.integer("seed");
  call.layer = arguments.integer("layer");
  check_call(call);
  make_plan(problem, arguments);
  validate(problem.plan, call);
  return problem;
}

}  // namespace fovea::apps
