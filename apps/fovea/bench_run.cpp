#include "apps/fovea/bench_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include "apps/fovea/comparison.h"
#include "apps/fovea/number_list.h"
#include "core/attention/executors/sdpa.h"
#include "core/attention/plan_map.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/interrupt.h"
#include "core/version.h"

namespace fovea::apps {
namespace {

constexpr int64_t kMaxSide = 1 << 20;

// Milliseconds of the repeats of one thing.
struct Times {
  std::vector<double> ms;

  double at(double share) const {
    std::vector<double> sorted = ms;
    std::sort(sorted.begin(), sorted.end());
    const double place = share * static_cast<double>(sorted.size() - 1);
    const auto low = static_cast<size_t>(place);
    const size_t high = std::min(low + 1, sorted.size() - 1);
    return sorted[low] + (place - std::floor(place)) * (sorted[high] - sorted[low]);
  }
  double median() const { return at(0.5); }
};

// Frames, height and width of a length: the factors that are closest to each other, so that methods
// which go by geometry have one. A prime number is a line.
std::array<int64_t, 3> grid_of_length(int64_t length) {
  std::array<int64_t, 3> best = {1, 1, length};
  for (int64_t f = 1; f * f * f <= length; ++f) {
    if (length % f != 0) continue;
    const int64_t area = length / f;
    int64_t h = static_cast<int64_t>(std::sqrt(static_cast<double>(area)));
    while (area % h != 0) --h;
    if (area / h - f < best[2] - best[0]) best = {f, h, area / h};
  }
  return best;
}

// Device time of a call.
double milliseconds(at::Device device, const std::function<void()>& call) {
  synchronize(device);
  const auto start = std::chrono::steady_clock::now();
  call();
  synchronize(device);
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

// A method on one problem: planned and lowered anew each time, and run.
class Contestant {
 public:
  Contestant(const Method& method, const AttentionCall& call)
      : method_(method),
        planner_(make_planner(method.attention.planner, method.attention.options)),
        executors_(make_executors()) {
    plan(call);
    executor_->run(plan_, call, lowered_.get());  // starts threads and libraries
    density = plan_density(plan_, call);
    // Plans that the data does not decide are made once for a whole run.
    planned_once = plan_.is_dense() || !planner_->cache_key(call).empty();
  }

  void measure(const AttentionCall& call) {
    const at::Device device = call.q.device();
    planning.ms.push_back(milliseconds(device, [&] { plan(call); }));
    running.ms.push_back(
        milliseconds(device, [&] { executor_->run(plan_, call, lowered_.get()); }));
  }
  std::string executor() const { return executor_->name(); }
  const Method& method() const { return method_; }
  /// What a call takes of a run: with its plan, unless all calls share one.
  double call_ms() const { return running.median() + (planned_once ? 0 : planning.median()); }

  Times planning, running;
  std::optional<double> density;
  bool planned_once = false;

 private:
  void plan(const AttentionCall& call) {
    plan_ = planner_->plan(call);
    const std::string& executor = method_.executor;
    executor_ = &pick_executor(executors_, plan_, call, executor.empty() ? "auto" : executor);
    lowered_ = executor_->lower(plan_, call);
  }

  const Method& method_;
  std::unique_ptr<Planner> planner_;
  std::vector<std::unique_ptr<Executor>> executors_;
  AttentionPlan plan_;
  Executor* executor_ = nullptr;
  std::shared_ptr<const LoweredPlan> lowered_;
};

struct Problem {
  std::array<int64_t, 3> grid;
  std::string dtype;
};

AttentionCall make_call(const BenchOptions& options, const Problem& problem, at::Device device) {
  AttentionCall call;
  call.q_layout = TokenLayout::grid(problem.grid[0], problem.grid[1], problem.grid[2]);
  call.kv_layout = call.q_layout;
  auto generator = at::detail::createCPUGenerator(options.seed);
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    *x = at::randn({options.batch, options.heads, call.q_layout.seq_len(), options.head_dim},
                   generator, at::TensorOptions().dtype(at::kFloat))
             .to(device, parse_dtype(problem.dtype));
  }
  return call;
}

Json record(const BenchOptions& options, const Problem& problem, const Contestant& contestant,
            const Times& sdpa) {
  const int64_t tokens = problem.grid[0] * problem.grid[1] * problem.grid[2];
  const Times& times = contestant.running;
  Json out;
  out["method"] = contestant.method().label;
  out["dtype"] = problem.dtype;
  out["tokens"] = tokens;
  out["grid"] = str(problem.grid[0], "x", problem.grid[1], "x", problem.grid[2]);
  out["batch"] = options.batch;
  out["heads"] = options.heads;
  out["head_dim"] = options.head_dim;
  out["executor"] = contestant.executor();
  out["density"] = contestant.density ? Json(*contestant.density) : Json(nullptr);
  out["repeats"] = options.repeats;
  out["median_ms"] = times.median();
  out["quartile1_ms"] = times.at(0.25);
  out["quartile3_ms"] = times.at(0.75);
  out["min_ms"] = times.at(0);
  out["max_ms"] = times.at(1);
  out["plan_ms"] = contestant.planning.median();
  out["planned_once"] = contestant.planned_once;
  out["sdpa_ms"] = sdpa.median();
  out["sdpa_min_ms"] = sdpa.at(0);
  out["sdpa_max_ms"] = sdpa.at(1);
  out["speedup"] = sdpa.median() / contestant.call_ms();
  const double products = 4.0 * static_cast<double>(options.batch * options.heads) *
                          static_cast<double>(tokens) * static_cast<double>(tokens) *
                          static_cast<double>(options.head_dim);
  out["dense_gflops"] = products * 1e-6 / times.median();
  out["executed_gflops"] = contestant.density
                               ? Json(products * *contestant.density * 1e-6 / times.median())
                               : Json(nullptr);
  return out;
}

// All methods on one problem; in turns with the comparator, so that what else the machine does
// meets them all.
std::vector<Json> measure(const BenchOptions& options, const Problem& problem,
                          const std::vector<Method>& methods, at::Device device) {
  const AttentionCall call = make_call(options, problem, device);
  const AttentionPlan dense = AttentionPlan::dense("dense");
  SdpaExecutor sdpa;
  sdpa.run(dense, call);
  std::vector<Contestant> contestants;
  for (const Method& method : methods) contestants.emplace_back(method, call);
  Times baseline;
  for (int64_t i = 0; i < options.repeats; ++i) {
    throw_if_interrupted();
    baseline.ms.push_back(milliseconds(device, [&] { sdpa.run(dense, call); }));
    for (Contestant& contestant : contestants) contestant.measure(call);
  }
  std::vector<Json> out;
  for (const Contestant& contestant : contestants) {
    out.push_back(record(options, problem, contestant, baseline));
  }
  return out;
}

std::string markdown_of(const std::vector<Json>& records, const std::string& head) {
  std::string out =
      head +
      "\n\n| method | dtype | tokens | grid | executor | density | plan ms | median ms "
      "| quartiles | SDPA ms | speed-up | GF/s executed |\n| --- | --- | ---: | --- | "
      "--- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n";
  const auto value = [](const Json& json) {
    return json.is_null() ? std::nullopt : std::optional(json.get<double>());
  };
  for (const Json& r : records) {
    out +=
        str("| ", r["method"].get<std::string>(), " | ", r["dtype"].get<std::string>(), " | ",
            r["tokens"].get<int64_t>(), " | ", r["grid"].get<std::string>(), " | ",
            r["executor"].get<std::string>(), " | ", number(value(r["density"]), 3), " | ",
            number(value(r["plan_ms"]), 2), r["planned_once"].get<bool>() ? " once" : "", " | ",
            number(value(r["median_ms"]), 2), " | ", number(value(r["quartile1_ms"]), 2), "–",
            number(value(r["quartile3_ms"]), 2), " | ", number(value(r["sdpa_ms"]), 2), " | ",
            number(value(r["speedup"]), 2), " | ", number(value(r["executed_gflops"]), 0), " |\n");
  }
  return out;
}

std::string csv_of(const std::vector<Json>& records) {
  std::string out;
  for (const auto& [key, value] : records[0].items()) out += (out.empty() ? "" : ",") + key;
  out += "\n";
  for (const Json& r : records) {
    std::string line;
    for (const auto& [key, value] : r.items()) {
      // A JSON string is a quoted CSV field, as none of ours holds a quotation mark.
      line += (line.empty() ? "" : ",") + (value.is_null() ? std::string() : value.dump());
    }
    out += line + "\n";
  }
  return out;
}

std::vector<Problem> problems_of(const BenchOptions& options) {
  std::vector<std::array<int64_t, 3>> grids;
  for (const std::string& text : options.grids) {
    for (const std::string& grid : parse_words(text, "--grid")) {
      grids.push_back(parse_grid(grid, "--grid"));
    }
  }
  const bool none = options.lengths.empty() && grids.empty();
  if (none || !options.lengths.empty()) {
    for (const int64_t length : parse_numbers(none ? "1024,4096" : options.lengths, "--len")) {
      require(length <= kMaxSide, ErrorCode::resource, "--len", length, " tokens, at most ",
              kMaxSide, " are taken");
      grids.push_back(grid_of_length(length));
    }
  }
  std::vector<Problem> out;
  for (const std::string& dtype : parse_words(options.dtypes, "--dtype")) {
    parse_dtype(dtype);  // throws
    for (const auto& grid : grids) {
      require(grid[0] * grid[1] <= kMaxSide && grid[0] * grid[1] * grid[2] <= kMaxSide,
              ErrorCode::resource, "--grid", "more than ", kMaxSide, " tokens");
      out.push_back({grid, dtype});
    }
  }
  return out;
}

void check_options(const BenchOptions& options) {
  const auto within = [](const char* option, int64_t value, int64_t high) {
    require(value >= 1 && value <= high, ErrorCode::usage, option, "expected 1 to ", high, ", got ",
            value);
  };
  within("--batch", options.batch, 4096);
  within("--heads", options.heads, 4096);
  within("--head-dim", options.head_dim, 4096);
  within("--repeats", options.repeats, 100'000);
  const bool known = options.format == "md" || options.format == "csv" || options.format == "json";
  require(known, ErrorCode::usage, "--format", "expected md, csv or json, got '", options.format,
          "'");
  if (!options.out.empty()) check_output_path(options.out, options.overwrite);
}

}  // namespace

int run_bench_attention(const BenchOptions& options) {
  check_options(options);
  const std::vector<Method> methods = parse_methods(options.methods, "--methods");
  const std::vector<Problem> problems = problems_of(options);
  const at::Device device = parse_device(options.device);
  set_num_threads(options.threads);
  const c10::InferenceMode inference;
  std::vector<Json> records;
  for (const Problem& problem : problems) {
    const int64_t tokens = problem.grid[0] * problem.grid[1] * problem.grid[2];
    if (!options.quiet) {
      std::fprintf(stderr, "%s, %ld tokens\n", problem.dtype.c_str(), tokens);
    }
    const auto made = guarded("bench", [&] { return measure(options, problem, methods, device); });
    for (Json r : made) {
      r["device"] = device_name(device);
      r["fovea"] = kVersion;
      records.push_back(std::move(r));
    }
  }
  std::string text;
  if (options.format == "md") {
    text = markdown_of(records, str("fovea ", kVersion, ", ", device_name(device), ", batch ",
                                    options.batch, ", ", options.heads, " heads of ",
                                    options.head_dim, ", ", options.repeats, " repeats"));
  } else {
    text = options.format == "csv" ? csv_of(records) : json_text(Json(records), 1) + "\n";
  }
  if (options.out.empty()) {
    std::fputs(text.c_str(), stdout);
  } else {
    write_text(options.out, text, options.overwrite);
  }
  return 0;
}

}  // namespace fovea::apps
