#include "apps/fovea/bench_run.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "apps/fovea/comparison.h"
#include "apps/fovea/number_list.h"
#include "core/attention/executors/sdpa.h"
#include "core/attention/plan_map.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/timing.h"
#include "core/version.h"

namespace fovea::apps {
namespace {

constexpr int64_t kMaxSide = 1 << 20;
constexpr int64_t kMaxHeads = 4096;       // and channels
constexpr double kMaxDuration = 600'000;  // ms

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
  double median() const { return median_of(ms); }
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

// A method on one problem: planned and lowered anew each time, and run.
class Contestant {
 public:
  Contestant(const Method& method, const std::string& executor, const AttentionCall& call)
      : method_(method),
        wanted_(method.executor.empty() ? executor : method.executor),
        call_(call),
        planner_(make_planner(method.attention.planner, method.attention.options)),
        executors_(make_executors()) {
    make_plan();
    executor_ = &pick_executor(executors_, plan_, call, wanted_.empty() ? "auto" : wanted_);
    make_lists();
    run();  // starts threads and libraries
    density = plan_density(plan_, call);
    // Plans that the data does not decide are made once for a whole run.
    planned_once = plan_.is_dense() || !planner_->cache_key(call).empty();
    peak_bytes = peak_bytes_of(call.q.device(), [&] {
      plan_ = {}, lowered_ = nullptr;
      make_plan();
      make_lists();
      run();
    });
  }

  void make_plan() { plan_ = planner_->plan(call_); }
  void make_lists() { lowered_ = executor_->lower(plan_, call_); }
  void run() { executor_->run(plan_, call_, lowered_.get()); }

  std::string executor() const { return executor_->name(); }
  const Method& method() const { return method_; }
  /// What a call takes of a run: with its plan, unless all calls share one.
  double call_ms() const {
    return running.median() + (planned_once ? 0 : planning.median() + lowering.median());
  }

  Times planning, lowering, running;
  std::optional<double> density;
  bool planned_once = false;
  int64_t peak_bytes = 0;

 private:
  const Method& method_;
  std::string wanted_;
  const AttentionCall& call_;
  std::unique_ptr<Planner> planner_;
  std::vector<std::unique_ptr<Executor>> executors_;
  AttentionPlan plan_;
  Executor* executor_ = nullptr;
  std::shared_ptr<const LoweredPlan> lowered_;
};

struct Problem {
  std::array<int64_t, 3> grid;
  int64_t heads, head_dim;
  std::string dtype;

  int64_t tokens() const { return grid[0] * grid[1] * grid[2]; }
};

AttentionCall make_call(const BenchOptions& options, const Problem& problem, at::Device device) {
  AttentionCall call;
  call.q_layout = TokenLayout::grid(problem.grid[0], problem.grid[1], problem.grid[2]);
  call.kv_layout = call.q_layout;
  at::manual_seed(options.seed);
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) {
    *x = at::randn({options.batch, problem.heads, call.q_layout.seq_len(), problem.head_dim},
                   at::device(device).dtype(at::kFloat))
             .to(parse_dtype(problem.dtype));
  }
  return call;
}

// LibTorch's attention, of a GPU its kernels by name.
struct Baseline {
  SdpaExecutor executor;
  Times times = {};
  int64_t peak_bytes = 0;
};

std::vector<Baseline> baselines_of(const AttentionCall& call) {
  const AttentionPlan dense = AttentionPlan::dense("dense");
  std::vector<Baseline> out;
  for (const SdpaKernel kernel : {SdpaKernel::cudnn, SdpaKernel::flash}) {
    const SdpaExecutor executor(kernel);
    if (!executor.why_not(dense, call)) out.push_back({executor});
  }
  if (out.empty()) out.push_back({SdpaExecutor()});
  return out;
}

Json record(const BenchOptions& options, const Problem& problem, const Contestant& contestant,
            const std::vector<Baseline>& baselines) {
  const Times& times = contestant.running;
  const Times& sdpa = baselines[0].times;
  Json out;
  out["method"] = contestant.method().label;
  out["dtype"] = problem.dtype;
  out["tokens"] = problem.tokens();
  out["grid"] = str(problem.grid[0], "x", problem.grid[1], "x", problem.grid[2]);
  out["batch"] = options.batch;
  out["heads"] = problem.heads;
  out["head_dim"] = problem.head_dim;
  out["executor"] = contestant.executor();
  out["density"] = contestant.density ? Json(*contestant.density) : Json(nullptr);
  out["repeats"] = options.repeats;
  out["median_ms"] = times.median();
  out["quartile1_ms"] = times.at(0.25);
  out["quartile3_ms"] = times.at(0.75);
  out["min_ms"] = times.at(0);
  out["max_ms"] = times.at(1);
  out["plan_ms"] = contestant.planning.median();
  out["lower_ms"] = contestant.lowering.median();
  out["planned_once"] = contestant.planned_once;
  const auto megabytes = [](int64_t bytes) {
    return bytes > 0 ? Json(static_cast<double>(bytes) * 1e-6) : Json(nullptr);
  };
  out["peak_mb"] = megabytes(contestant.peak_bytes);
  out["sdpa"] = baselines[0].executor.name();
  out["sdpa_ms"] = sdpa.median();
  out["sdpa_min_ms"] = sdpa.at(0);
  out["sdpa_max_ms"] = sdpa.at(1);
  out["sdpa_peak_mb"] = megabytes(baselines[0].peak_bytes);
  out["flash_ms"] = nullptr;
  for (const Baseline& baseline : baselines) {
    if (baseline.executor.name() == "sdpa_flash") out["flash_ms"] = baseline.times.median();
  }
  out["speedup"] = sdpa.median() / contestant.call_ms();
  const auto tokens = static_cast<double>(problem.tokens());
  const double products = 4.0 * static_cast<double>(options.batch * problem.heads) * tokens *
                          tokens * static_cast<double>(problem.head_dim);
  out["dense_tflops"] = products * 1e-9 / times.median();
  out["executed_tflops"] = contestant.density
                               ? Json(products * *contestant.density * 1e-9 / times.median())
                               : Json(nullptr);
  out["sdpa_tflops"] = products * 1e-9 / sdpa.median();
  return out;
}

// All methods on one problem; in turns with the comparators, so that what else the machine does
// meets them all.
std::vector<Json> measure(const BenchOptions& options, const Problem& problem,
                          const std::vector<Method>& methods, at::Device device) {
  const AttentionCall call = make_call(options, problem, device);
  const AttentionPlan dense = AttentionPlan::dense("dense");
  std::vector<Baseline> baselines = baselines_of(call);
  std::vector<Contestant> contestants;
  contestants.reserve(methods.size());  // calls below point at them
  for (const Method& method : methods) contestants.emplace_back(method, options.executor, call);
  std::vector<std::function<void()>> calls;
  std::vector<Times*> times;
  for (Baseline& baseline : baselines) {
    calls.emplace_back([&] { baseline.executor.run(dense, call); });
    times.push_back(&baseline.times);
    calls.back()();  // starts threads and libraries
    baseline.peak_bytes = peak_bytes_of(device, calls.back());
  }
  for (Contestant& contestant : contestants) {
    calls.emplace_back([&] { contestant.make_plan(); });
    calls.emplace_back([&] { contestant.make_lists(); });
    calls.emplace_back([&] { contestant.run(); });
    times.insert(times.end(), {&contestant.planning, &contestant.lowering, &contestant.running});
  }
  const double duration = options.duration >= 0 ? options.duration : device.is_cuda() ? 50 : 0;
  const auto measured = time_in_turns(device, calls, options.repeats, duration);
  for (size_t i = 0; i < calls.size(); ++i) times[i]->ms = measured[i];
  std::vector<Json> out;
  for (const Contestant& contestant : contestants) {
    out.push_back(record(options, problem, contestant, baselines));
  }
  return out;
}

std::string markdown_of(const std::vector<Json>& records, const std::string& head) {
  std::string out = head +
                    "\n\n| method | dtype | tokens | grid | heads x dim | executor | density | "
                    "plan ms | lower ms | median ms | quartiles | SDPA ms | flash ms | speed-up | "
                    "TF/s executed | TF/s dense | MB |\n| --- | --- | ---: | --- | --- | --- ";
  for (int i = 0; i < 11; ++i) out += "| ---: ";
  out += "|\n";
  const auto shown = [](const Json& json, int digits) {
    return number(json.is_null() ? std::nullopt : std::optional(json.get<double>()), digits);
  };
  for (const Json& r : records) {
    out += str("| ", r["method"].get<std::string>(), " | ", r["dtype"].get<std::string>(), " | ",
               r["tokens"].get<int64_t>(), " | ", r["grid"].get<std::string>(), " | ",
               r["heads"].get<int64_t>(), "x", r["head_dim"].get<int64_t>(), " | ",
               r["executor"].get<std::string>());
    const std::string once = r["planned_once"].get<bool>() ? " once" : "";
    out += str(" | ", shown(r["density"], 3), " | ", shown(r["plan_ms"], 3), once, " | ",
               shown(r["lower_ms"], 3), once, " | ", shown(r["median_ms"], 3), " | ",
               shown(r["quartile1_ms"], 3), "–", shown(r["quartile3_ms"], 3));
    out += str(" | ", shown(r["sdpa_ms"], 3), " | ", shown(r["flash_ms"], 3), " | ",
               shown(r["speedup"], 2), " | ", shown(r["executed_tflops"], 3), " | ",
               shown(r["dense_tflops"], 3), " | ", shown(r["peak_mb"], 0), " |\n");
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

// "12x32760x128": heads, tokens, channels of a head.
Problem problem_of_shape(const std::string& text) {
  const std::array<int64_t, 3> sizes = parse_grid(text, "--shape");
  require(sizes[1] <= kMaxSide, ErrorCode::resource, "--shape", sizes[1], " tokens, at most ",
          kMaxSide, " are taken");
  require(sizes[0] <= kMaxHeads && sizes[2] <= kMaxHeads, ErrorCode::usage, "--shape",
          "expected up to ", kMaxHeads, " heads and channels, got '", text, "'");
  return {grid_of_length(sizes[1]), sizes[0], sizes[2], ""};
}

std::vector<Problem> problems_of(const BenchOptions& options) {
  std::vector<Problem> shapes;
  const bool is_shaped = !options.shapes.empty();
  require(!is_shaped || (options.lengths.empty() && options.grids.empty()), ErrorCode::usage,
          "--shape", "says the tokens too: give it without --len and --grid");
  if (is_shaped) {
    for (const std::string& text : parse_words(options.shapes, "--shape")) {
      shapes.push_back(problem_of_shape(text));
    }
  }
  const auto add = [&](const std::array<int64_t, 3>& grid) {
    shapes.push_back({grid, options.heads, options.head_dim, ""});
  };
  for (const std::string& text : options.grids) {
    for (const std::string& words : parse_words(text, "--grid")) {
      const std::array<int64_t, 3> grid = parse_grid(words, "--grid");
      require(grid[0] * grid[1] <= kMaxSide && grid[0] * grid[1] * grid[2] <= kMaxSide,
              ErrorCode::resource, "--grid", "more than ", kMaxSide, " tokens");
      add(grid);
    }
  }
  const bool none = options.lengths.empty() && shapes.empty();
  if (none || !options.lengths.empty()) {
    for (const int64_t length : parse_numbers(none ? "1024,4096" : options.lengths, "--len")) {
      require(length <= kMaxSide, ErrorCode::resource, "--len", length, " tokens, at most ",
              kMaxSide, " are taken");
      add(grid_of_length(length));
    }
  }
  std::vector<Problem> out;
  for (const std::string& dtype : parse_words(options.dtypes, "--dtype")) {
    parse_dtype(dtype);  // throws
    for (Problem& shape : shapes) {
      shape.dtype = dtype;
      out.push_back(shape);
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
  within("--heads", options.heads, kMaxHeads);
  within("--head-dim", options.head_dim, kMaxHeads);
  within("--repeats", options.repeats, 100'000);
  require(options.duration <= kMaxDuration, ErrorCode::usage, "--duration", "expected up to ",
          kMaxDuration, " ms, got ", options.duration);
  if (!options.executor.empty()) check_executor_name(make_executors(), options.executor);
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
    if (!options.quiet) {
      std::fprintf(stderr, "%s, %ld heads, %ld tokens\n", problem.dtype.c_str(), problem.heads,
                   problem.tokens());
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
                                    options.batch, ", ", options.repeats, " repeats"));
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
