// Times what attention plans cost before they run, on the CPU: the planner, the lowering, and the
// attention itself, one after the other in each round, the least of several rounds of each:
//
//   cmake --build build --target planning_bench
//   OMP_NUM_THREADS=2 build/tests/planning_bench [--long] [--bf16] [--rounds N] [NAME ...]
//   OMP_NUM_THREADS=2 build/tests/planning_bench --dense [--bf16] [--rounds N]
//
// `share` is planning and lowering over the attention's time at density 0.1: its own time, or, of
// denser plans, as much less as their density is above. Names choose lines of the table. --dense
// compares the executors for dense plans.

#include <algorithm>
#include <cstdio>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/InferenceMode.h>

#include "core/attention/executors/cpu.h"
#include "core/attention/executors/sdpa.h"
#include "core/attention/plan_map.h"
#include "core/attention/planner.h"
#include "core/check.h"

namespace fovea {
namespace {

constexpr int64_t kHeads = 8, kDim = 128;
constexpr double kDensity = 0.1;

/// With one thread its time on a core, which leaves out what other programs take of it.
double milliseconds(const std::function<void()>& call) {
  const auto now = [] {
    timespec time{};
    clock_gettime(at::get_num_threads() == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
    return 1e3 * static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_nsec);
  };
  const double start = now();
  call();
  return now() - start;
}

/// A planner with its options, or a plan of predicates alone.
struct Line {
  std::string name;
  std::function<AttentionPlan(const AttentionCall&)> plan;
  bool once = false;  ///< planned once for all calls of a run
};

Line planned(const std::string& planner, const std::vector<std::string>& options) {
  std::string name = planner;
  for (const std::string& option : options) name += " " + option;
  const std::shared_ptr<Planner> made =
      make_planner(planner, parse_planner_options(options, planner));
  AttentionCall call;
  call.q = at::zeros({1, 1, 1, 1});
  call.q_layout = call.kv_layout = TokenLayout::grid(1, 1, 1);
  const bool once = !made->cache_key(call).empty();
  return {name, [made](const AttentionCall& it) { return made->plan(it); }, once};
}

Line cut(const std::string& name, const Predicate& predicate, const TokenOrder& order = {}) {
  return {name,
          [=](const AttentionCall&) {
            AttentionPlan plan = AttentionPlan::dense("predicate");
            plan.q_order = plan.kv_order = order;
            std::get<SoftmaxBranch>(plan.branches[0].kind).selection.predicates = {predicate};
            return plan;
          },
          true};
}

std::vector<Line> lines(const TokenLayout& layout) {
  std::vector<Line> out;
  for (const std::string side : {"128", "64"}) {
    const std::string q = "block_q=" + side, kv = "block_kv=" + side;
    out.push_back(planned("topk", {"density=0.1", q, kv}));
    out.push_back(planned("topk", {"top_p=0.09", q, kv}));
    out.push_back(planned("sparge", {"density=0.1", "similarity=-1", q, kv}));
    out.push_back(planned("sparge", {"top_p=0.1", "similarity=-1", q, kv}));
    out.push_back(planned("xattention", {"top_p=0.1", q, kv}));
    out.push_back(planned("xattention", {"top_p=0.1", "stride=16", q, kv}));
    out.push_back(planned("psa", {"shares=0.05,0.05,0.06,0.08", q, kv}));
    out.push_back(planned("sla", {"density=0.1", q, kv}));
    out.push_back(planned("sla", {"density=0.1", "projection=identity", q, kv}));
  }
  out.push_back(planned("sla", {"density=0.1", "projection=identity", "linear_over=all"}));
  out.push_back(planned("topk", {"density=0.1", "tile=4,8,4"}));
  out.push_back(planned("sparge", {"density=0.1", "similarity=-1", "tile=4,8,4"}));
  out.push_back(planned("svg2", {"top_p=0.1"}));
  out.push_back(planned("radial", {}));
  out.push_back(planned("window", {"tile=4,8,8", "window=1,2,1"}));
  out.push_back(planned("neighborhood", {"window=3,7,7"}));
  out.push_back(planned("neighborhood", {"window=4,8,8", "stride=4,8,8"}));
  WindowPredicate window;
  window.axes[1] = {.size = 10};
  window.axes[2] = {.size = 10};
  out.push_back(cut("window 10x10 of all frames, tiles", window, TokenOrder::tiles({4, 8, 4})));
  out.push_back(cut("disc of 6", DiscPredicate{6}));
  out.push_back(cut("disc of 6, tiles", DiscPredicate{6}, TokenOrder::tiles({4, 8, 4})));
  const int64_t tokens = layout.seq_len();
  out.push_back(cut("band of 5 %", BandPredicate{tokens / 20}));
  out.push_back(
      cut("band of 5 %, in tiles", BandPredicate{tokens / 20, true}, TokenOrder::tiles({4, 8, 4})));
  out.push_back(cut("causal", CausalPredicate{}));
  return out;
}

void measure(const Line& line, const AttentionCall& call, int rounds) {
  const CpuExecutor lowering;
  CpuExecutor executor;
  double plan_ms = 1e30, lower_ms = 1e30, run_ms = 1e30;
  AttentionPlan plan;
  std::shared_ptr<const LoweredPlan> lowered;
  for (int i = 0; i < rounds; ++i) {
    plan_ms = std::min(plan_ms, milliseconds([&] { plan = line.plan(call); }));
    lower_ms = std::min(lower_ms, milliseconds([&] { lowered = lowering.lower(plan, call); }));
    run_ms = std::min(run_ms, milliseconds([&] { executor.run(plan, call, lowered.get()); }));
  }
  const std::vector<PlanMap> maps = plan_maps(plan, call);
  double density = 0;
  for (const PlanMap& map : maps) density += map.density / static_cast<double>(maps.size());
  const double share = (plan_ms + lower_ms) / (run_ms * std::min(1.0, kDensity / density));
  std::printf("| %-52s | %.3f | %8.2f | %7.2f | %8.1f | %6.2f %%%s |\n", line.name.c_str(), density,
              plan_ms, lower_ms, run_ms, 100 * share, line.once ? " once" : "");
}

void run(const std::array<int64_t, 3>& grid, at::ScalarType type, int rounds,
         const std::vector<std::string>& names) {
  AttentionCall call;
  call.q_layout = call.kv_layout = TokenLayout::grid(grid[0], grid[1], grid[2]);
  at::manual_seed(1);
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    // As projections give it: tokens before heads.
    *x = at::randn({1, call.q_layout.seq_len(), kHeads, kDim}).to(type).transpose(1, 2);
  }
  std::printf("\n%s, %ld tokens, %d threads, %d rounds\n\n", type == at::kFloat ? "fp32" : "bf16",
              call.q_layout.seq_len(), at::get_num_threads(), rounds);
  std::printf("| method | density | plan ms | lower ms | attention ms | share |\n");
  std::printf("| --- | --- | --- | --- | --- | --- |\n");
  for (const Line& line : lines(call.q_layout)) {
    const bool is_wanted =
        names.empty() || std::any_of(names.begin(), names.end(), [&](const std::string& name) {
          return line.name.find(name) != std::string::npos;
        });
    if (is_wanted) measure(line, call, rounds);
  }
}

struct DenseCase {
  int64_t batch, heads, q_len, kv_len, dim;
};

/// Dense plans: the executor `cpu` beside `sdpa`, in turns.
void compare_dense(at::ScalarType type, int rounds) {
  std::printf("\ndense plans, %s, %d threads\n\n", type == at::kFloat ? "fp32" : "bf16",
              at::get_num_threads());
  std::printf("| batch x heads x queries x keys x dim | sdpa ms | cpu ms | sdpa / cpu |\n");
  std::printf("| --- | --- | --- | --- |\n");
  for (const DenseCase& c : std::vector<DenseCase>{{1, 8, 4096, 4096, 128},
                                                   {2, 12, 1560, 512, 128},
                                                   {1, 12, 1560, 1560, 128},
                                                   {2, 3, 832, 832, 128},
                                                   {1, 8, 1024, 1024, 64},
                                                   {8, 12, 197, 197, 64},
                                                   {1, 8, 256, 64, 64},
                                                   {1, 8, 64, 64, 64},
                                                   {64, 3, 49, 49, 32},
                                                   {1, 2, 8, 8, 16}}) {
    AttentionCall call;
    call.q_layout = TokenLayout::sequence(c.q_len);
    call.kv_layout = TokenLayout::sequence(c.kv_len);
    const auto draw = [&](int64_t length) {
      return at::randn({c.batch, length, c.heads, c.dim}).to(type).transpose(1, 2);
    };
    call.q = draw(c.q_len), call.k = draw(c.kv_len), call.v = draw(c.kv_len);
    const AttentionPlan plan = AttentionPlan::dense("dense");
    CpuExecutor cpu;
    SdpaExecutor sdpa;
    const auto lowered = cpu.lower(plan, call);
    double ours = 1e30, theirs = 1e30;
    for (int i = 0; i < 4 * rounds; ++i) {
      theirs = std::min(theirs, milliseconds([&] { sdpa.run(plan, call, nullptr); }));
      ours = std::min(ours, milliseconds([&] { cpu.run(plan, call, lowered.get()); }));
    }
    std::printf("| %ld x %ld x %ld x %ld x %ld | %.3f | %.3f | %.2f |\n", c.batch, c.heads, c.q_len,
                c.kv_len, c.dim, theirs, ours, theirs / ours);
  }
}

}  // namespace
}  // namespace fovea

int main(int argc, char** argv) {
  const c10::InferenceMode guard;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  bool is_long = false, is_dense = false;
  at::ScalarType type = at::kFloat;
  int rounds = 5;
  std::vector<std::string> names;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--long") {
      is_long = true;
    } else if (word == "--dense") {
      is_dense = true;
    } else if (word == "--bf16") {
      type = at::kBFloat16;
    } else if (word == "--rounds" && i + 1 < argc) {
      rounds = std::stoi(argv[++i]);
    } else {
      names.push_back(word);
    }
  }
  at::set_num_threads(at::get_num_threads());
  try {
    if (is_dense) {
      fovea::compare_dense(type, rounds);
      return 0;
    }
    fovea::run({is_long ? 13 : 4, 32, 32}, type, rounds, names);
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
