// Plans and what they cost on a device, beside dense attention and LibTorch's.
//
//   methods_bench [--only TEXT] [--rounds N] [--duration MS] [--device cpu] [--small]
//
// bf16, random normal numbers. Everything of a case runs in turns, in this order and the opposite
// one, each warmed up by itself. Milliseconds are medians of N rounds; TFLOP/s are those of the
// pairs that are computed, or bytes where memory is what counts; the last column is TFLOP/s over
// those of the case's own dense attention.
// TEXT is part of a case's name. --small is for trying it out on a CPU.
#include <algorithm>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "core/attention/block_pool.h"
#include "core/attention/executors/block_linear.h"
#include "core/attention/executors/cuda_linear.h"
#include "core/attention/executors/sdpa.h"
#include "core/attention/planner.h"
#include "core/attention/planners/blocks.h"
#include "core/attention/select.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/timing.h"
#include "tests/bench/random_blocks.h"

namespace fovea {
namespace {

struct Options {
  std::string only;
  int64_t rounds = 4;
  double duration = 50;
  at::Device device = at::kCUDA;
  bool is_small = false;
};

struct Line {
  std::string name;
  double products;  // floating-point operations of a call, or 0
  std::function<void()> run;
  double bytes = 0;  // of a call in memory, or 0: unknown
};

struct Shape {
  int64_t heads, len, dim;
};

/// A call of random numbers, and what runs its plans.
class Problem {
 public:
  Problem(const Options& options, Shape shape, const TokenLayout& layout)
      : executors_(make_executors()) {
    call.q_layout = call.kv_layout = layout;
    at::manual_seed(1);
    const auto numbers = at::device(options.device).dtype(at::kBFloat16);
    for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
      // As projections give it: tokens before heads.
      *x = at::randn({1, shape.len, shape.heads, shape.dim}, numbers).transpose(1, 2);
    }
    dense_products = 4.0 * static_cast<double>(shape.heads * shape.dim) *
                     static_cast<double>(shape.len) * static_cast<double>(shape.len);
  }

  Executor& executor(const AttentionPlan& plan) { return pick_executor(executors_, plan, call); }

  /// A plan that is lowered already. Its products are those of its first softmax.
  Line run_of(const std::string& name, const AttentionPlan& plan) {
    validate(plan, call);
    Executor& own = executor(plan);
    const auto lowered = own.lower(plan, call);
    return {name, dense_products * density_of(plan),
            [this, plan, lowered, &own] { own.run(plan, call, lowered.get()); }};
  }
  Line lowering_of(const std::string& name, const AttentionPlan& plan) {
    validate(plan, call);
    const Executor& own = executor(plan);
    return {name, 0, [this, plan, &own] { own.lower(plan, call); }};
  }
  std::vector<Line> dense_lines() {
    const AttentionPlan dense = AttentionPlan::dense("dense");
    std::vector<Line> out = {run_of("dense", dense)};
    for (const SdpaKernel kernel : {SdpaKernel::cudnn, SdpaKernel::flash}) {
      auto sdpa = std::make_shared<SdpaExecutor>(kernel);
      if (sdpa->why_not(dense, call)) continue;
      out.push_back(
          {sdpa->name(), dense_products, [this, dense, sdpa] { sdpa->run(dense, call); }});
    }
    return out;
  }

  AttentionCall call;
  double dense_products = 0;

 private:
  double density_of(const AttentionPlan& plan) const {
    const auto* softmax = std::get_if<SoftmaxBranch>(&plan.branches[0].kind);
    if (softmax == nullptr) return 0;
    return block_density(softmax->selection, call.q.device()).mean().item<double>();
  }

  std::vector<std::unique_ptr<Executor>> executors_;
};

Selection& selection_of(AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
}

/// Random square blocks, those of flex_attention_bench.py.
AttentionPlan random_plan(const AttentionCall& call, int64_t block, double density) {
  AttentionPlan plan = AttentionPlan::dense("random");
  Selection& selection = selection_of(plan);
  selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(call.q_layout, block);
  const int64_t heads = call.q.size(1), rows = selection.q_blocks.num_blocks();
  const at::Tensor classes = at::empty({1, heads, rows, rows}, at::kByte);
  uint8_t* data = classes.mutable_data_ptr<uint8_t>();
  for (int64_t i = 0; i < classes.numel(); ++i) {
    data[i] = bench::keeps(1, static_cast<uint64_t>(i), density) ? 1 : 0;
  }
  selection.classes = classes.to(call.q.device());
  return plan;
}

void print(const std::string& title, const std::vector<Line>& lines, const Options& options) {
  std::vector<std::function<void()>> calls;
  for (const Line& line : lines) calls.push_back(line.run);
  const auto times = time_in_turns(options.device, calls, options.rounds, options.duration);
  std::printf(
      "\n%s\n\n| what | ms | least | TFLOP/s | of dense |\n| --- | ---: | ---: | ---: | "
      "---: |\n",
      title.c_str());
  double dense = 0;
  for (size_t i = 0; i < lines.size(); ++i) {
    const double ms = median_of(times[i]);
    const double least = *std::min_element(times[i].begin(), times[i].end());
    std::printf("| %s | %.4f | %.4f |", lines[i].name.c_str(), ms, least);
    if (lines[i].products == 0) {
      if (lines[i].bytes > 0) std::printf(" %.2f TB/s", lines[i].bytes * 1e-9 / ms);
      std::printf(" | |\n");
      continue;
    }
    const double rate = lines[i].products * 1e-9 / ms;
    if (lines[i].name == "dense") dense = rate;
    std::printf(" %.1f | %.3f |\n", rate, dense > 0 ? rate / dense : 0);
  }
  std::fflush(stdout);
}

std::string title_of(const std::string& name, const AttentionCall& call) {
  return str(name, ", ", call.q.size(1), " x ", call.q.size(2), " x ", call.q.size(3));
}

// Tokens of Wan2.1 at 81 x 480 x 832 and 81 x 720 x 1280.
Problem medium(const Options& options) {
  if (options.is_small) return {options, {2, 1000, 64}, TokenLayout::grid(1, 25, 40)};
  return {options, {12, 32760, 128}, TokenLayout::grid(21, 30, 52)};
}
Problem large(const Options& options) {
  if (options.is_small) return {options, {3, 1000, 64}, TokenLayout::grid(1, 25, 40)};
  return {options, {40, 75600, 128}, TokenLayout::grid(21, 45, 80)};
}

void measure_dense(const Options& options) {
  Problem problem = large(options);
  print(title_of("dense", problem.call), problem.dense_lines(), options);
}

void measure_lowering(const Options& options) {
  Problem problem = large(options);
  std::vector<Line> lines;
  for (const double density : {0.1, 0.25}) {
    lines.push_back(problem.lowering_of(str("lower 128-blocks, density ", density),
                                        random_plan(problem.call, 128, density)));
  }
  lines.push_back(
      problem.lowering_of("lower 64-blocks, density 0.1", random_plan(problem.call, 64, 0.1)));
  print(title_of("lower", problem.call), lines, options);
}

// Beside flex_attention_bench.py.
void measure_lists(const Options& options) {
  Problem problem = medium(options);
  std::vector<Line> lines = problem.dense_lines();
  for (const double density : {0.5, 0.25, 0.1, 0.05}) {
    lines.push_back(problem.run_of(str("128-blocks, density ", density),
                                   random_plan(problem.call, 128, density)));
  }
  print(title_of("lists", problem.call), lines, options);
}

// 64-blocks of which rows 2 i and 2 i + 1 have half of their lists in common.
AttentionPlan shared_rows_plan(const AttentionCall& call, double density) {
  AttentionPlan plan = random_plan(call, 64, density / 2);
  Selection& selection = selection_of(plan);
  const int64_t rows = selection.classes.size(2);
  const at::Tensor common =
      at::rand(selection.classes.sizes(), selection.classes.options().dtype(at::kFloat))
          .lt(density / 2)
          .index_select(
              2, at::arange(rows, selection.classes.options().dtype(at::kLong)).floor_divide(2));
  selection.classes = selection.classes.logical_or(common).to(at::kByte);
  return plan;
}

void measure_shared_rows(const Options& options) {
  Problem problem = medium(options);
  std::vector<Line> lines = problem.dense_lines();
  lines.push_back(
      problem.run_of("64-blocks, density 0.1, each its own", random_plan(problem.call, 64, 0.1)));
  lines.push_back(
      problem.run_of("64-blocks, neighbours share half", shared_rows_plan(problem.call, 0.1)));
  print(title_of("shared rows", problem.call), lines, options);
}

// int64 [1, heads, clusters + 1]: ends of clusters of random sizes.
at::Tensor random_offsets(const AttentionCall& call, int64_t clusters) {
  const int64_t heads = call.q.size(1), len = call.q.size(2);
  const at::Tensor cuts = std::get<0>(at::randint(len + 1, {1, heads, clusters - 1}).sort(2));
  return at::cat({at::zeros({1, heads, 1}, at::kLong), cuts, at::full({1, heads, 1}, len)}, 2)
      .to(call.q.device(), at::kLong);
}

// Of the pairs that a kernel computes which packs keys, with queries 64 at a time, those in the
// plan.
double wanted_of_computed(const Selection& selection) {
  const auto sizes = [](const BlockAxis& axis) {
    const at::Tensor& ends = axis.device_offsets();
    return (ends.slice(2, 1) - ends.slice(2, 0, -1)).to(at::kDouble);
  };
  const at::Tensor queries = sizes(selection.q_blocks);  // [1, heads, q blocks]
  const at::Tensor keys =
      selection.classes.to(at::kDouble).matmul(sizes(selection.kv_blocks).unsqueeze(3)).squeeze(3);
  const at::Tensor computed = queries.div(64).ceil().mul(64) * keys.div(160).ceil().mul(160);
  return (queries * keys).sum().item<double>() / computed.sum().item<double>();
}

// Clusters as SVG2 makes them: sorted rows, sizes that only the device knows.
void measure_clusters(const Options& options) {
  Problem problem = medium(options);
  std::vector<Line> lines = problem.dense_lines();
  const AttentionCall& call = problem.call;
  const int64_t heads = call.q.size(1), len = call.q.size(2);
  const int64_t q_clusters = options.is_small ? 10 : 300,
                kv_clusters = options.is_small ? 30 : 1000;
  for (const bool is_sorted : {false, true}) {
    for (const double density : {0.1, 0.25}) {
      AttentionPlan plan = AttentionPlan::dense("clusters");
      Selection& selection = selection_of(plan);
      selection.q_blocks = BlockAxis::from_offsets(random_offsets(call, q_clusters), len);
      selection.kv_blocks = BlockAxis::from_offsets(random_offsets(call, kv_clusters), len);
      const auto numbers = at::device(call.q.device()).dtype(at::kFloat);
      selection.classes =
          at::rand({1, heads, q_clusters, kv_clusters}, numbers).lt(density).to(at::kByte);
      if (is_sorted) {
        const auto order = [&] { return at::rand({1, heads, len}, numbers).argsort(2, false); };
        plan.q_order = TokenOrder::index(order()), plan.kv_order = TokenOrder::index(order());
      }
      const std::string name = str(q_clusters, " x ", kv_clusters, " clusters, density ", density,
                                   is_sorted ? ", tokens sorted" : ", tokens as they are");
      const double wanted = wanted_of_computed(selection);
      lines.push_back(problem.run_of(str(name, ", ", wanted, " of computed pairs wanted"), plan));
      lines.push_back(problem.lowering_of("lower " + name, plan));
    }
  }
  print(title_of("clusters", call), lines, options);
}

// The whole of SLA, and its parts one by one.
void measure_sla(const Options& options, int64_t block) {
  Problem problem = medium(options);
  const AttentionCall& call = problem.call;
  const Json chosen = {{"density", 0.05}, {"block_q", block}, {"block_kv", block}};
  const std::shared_ptr<Planner> planner = make_planner("sla", chosen);
  AttentionCall learned = call;
  learned.params = {at::eye(call.v.size(3), call.v.options()),
                    at::zeros({call.v.size(3)}, call.v.options())};
  const AttentionPlan plan = planner->plan(learned);
  Executor& executor = problem.executor(plan);
  const Selection selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  const auto linear = std::get<LinearBranch>(plan.branches[1].kind);
  LinearBranch unprojected = linear;
  unprojected.proj_weight = unprojected.proj_bias = at::Tensor();
  const auto run_linear = [&](const LinearBranch& branch) {
    return call.q.is_cuda() ? run_linear_on_device(plan, branch, call)
                            : run_block_linear(plan, branch, call);
  };
  const at::Tensor scores = mean_scores(call, plan, selection);
  const int64_t kept = kept_blocks(0.05, scores.size(3));
  std::vector<Line> lines = problem.dense_lines();
  lines.push_back(problem.run_of("softmax branch", planner->plan(call)));
  lines.push_back({"whole: plan, lists, run", 0, [&] {
                     const AttentionPlan own = planner->plan(learned);
                     const auto lowered = executor.lower(own, learned);
                     executor.run(own, learned, lowered.get());
                   }});
  lines.push_back({"plan", 0, [&] { planner->plan(learned); }});
  lines.push_back({"plan: means of blocks of q", 0,
                   [&] { pool_blocks(call.q, selection.q_blocks, plan.q_order, call.q_layout); }});
  lines.push_back({"plan: means and scores", 0, [&] { mean_scores(call, plan, selection); }});
  lines.push_back({"plan: choice", 0, [&] { keep_top_k(scores, kept); }});
  lines.push_back(problem.lowering_of("lists", plan));
  lines.push_back(problem.run_of("run", plan));
  lines.push_back({"linear branch with projection", 0, [&] { run_linear(linear); }});
  lines.push_back({"linear branch without", 0, [&] { run_linear(unprojected); }});
  LinearStates keys, sums;
  if (has_linear_kernel(plan, linear, call)) {
    keys = linear_states_of_keys(plan, linear, call);
    sums = skipped_linear_states(plan, linear, keys);
    const auto rows = static_cast<double>(call.q.nbytes());  // k, v, the result have as many
    const auto keys_bytes = static_cast<double>(keys.states.nbytes());
    const auto sums_bytes = static_cast<double>(sums.states.nbytes());
    lines.push_back({"linear: states of keys", 0,
                     [&] { linear_states_of_keys(plan, linear, call); }, 2 * rows + keys_bytes});
    lines.push_back({"linear: sums of states", 0,
                     [&] { skipped_linear_states(plan, linear, keys); }, keys_bytes + sums_bytes});
    lines.push_back({"linear: result, added to the softmax's", 0,
                     [&] { linear_result(plan, linear, call, sums, call.v); },
                     3 * rows + sums_bytes});
  }
  print(title_of(str("sla, density 0.05, ", block, "-blocks"), call), lines, options);
}

void measure_sla(const Options& options) {
  for (const int64_t block : {128, 64}) measure_sla(options, block);
}

void measure_planners(const Options& options) {
  Problem problem = medium(options);
  std::vector<Line> lines;
  const auto add = [&](const std::string& name, const Json& planner_options, int64_t step,
                       const std::string& words) {
    const std::shared_ptr<Planner> planner = make_planner(name, planner_options);
    AttentionCall call = problem.call;
    planner->plan(call);
    call.context.step = step;
    lines.push_back({"plan " + name + words, 0, [=] { planner->plan(call); }});
  };
  add("topk", {{"density", 0.1}}, 0, " density=0.1");
  add("topk", {{"top_p", 0.9}}, 0, " top_p=0.9");
  add("sla", {{"density", 0.05}}, 0, " density=0.05");
  add("sparge", Json::object(), 0, "");
  add("xattention", Json::object(), 0, "");
  add("xattention", {{"stride", 16}}, 0, " stride=16");
  add("psa", Json::object(), 0, "");
  add("svg2", Json::object(), 1, ", later steps");
  print(title_of("planners", problem.call), lines, options);
  Options few = options;
  few.rounds = 1, few.duration = 0;
  lines.clear();
  add("svg2", Json::object(), 0, ", first step");
  print(title_of("planners, once", problem.call), lines, few);
}

struct Case {
  std::string name;
  void (*measure)(const Options&);
};

void run(const Options& options) {
  const c10::InferenceMode no_gradients;
  std::printf("%s\n", device_name(options.device).c_str());
  const std::vector<Case> cases = {{"lower", &measure_lowering},
                                   {"lists", &measure_lists},
                                   {"shared rows", &measure_shared_rows},
                                   {"clusters", &measure_clusters},
                                   {"sla", &measure_sla},
                                   {"planners", &measure_planners},
                                   {"dense", &measure_dense}};
  for (const Case& one : cases) {
    if (one.name.find(options.only) != std::string::npos) one.measure(options);
  }
}

Options read(int argc, char** argv) {
  Options options;
  std::string device = "cuda";
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto value = [&] {
      require(++i < argc, ErrorCode::usage, word, "has no value");
      return std::string(argv[i]);
    };
    if (word == "--only") {
      options.only = value();
    } else if (word == "--rounds") {
      options.rounds = std::stol(value());
    } else if (word == "--duration") {
      options.duration = std::stod(value());
    } else if (word == "--device") {
      device = value();
    } else {
      require(word == "--small", ErrorCode::usage, word, "see the head of methods_bench.cpp");
      options.is_small = true;
    }
  }
  options.device = parse_device(device);
  return options;
}

}  // namespace
}  // namespace fovea

int main(int argc, char** argv) {
  try {
    fovea::guarded("methods_bench", [&] { fovea::run(fovea::read(argc, argv)); });
    return 0;
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code();
  }
}
