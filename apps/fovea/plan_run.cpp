#include "apps/fovea/plan_run.h"

#include <algorithm>
#include <cstdio>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/InferenceMode.h>

#include "apps/fovea/comparison.h"
#include "apps/fovea/number_list.h"
#include "apps/fovea/plan_picture.h"
#include "apps/fovea/video_run.h"
#include "core/attention/executor.h"
#include "core/attention/plan_store.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/version.h"
#include "pipelines/model_folder.h"

namespace fovea::apps {
namespace {

constexpr int64_t kMaxTokens = 1 << 20, kMaxHeads = 1024, kMaxDim = 4096;

// A plan, the call it was made for, and where that came from.
struct Shown {
  AttentionPlan plan;
  AttentionCall call;
  std::string source;
  std::optional<PlanStore> plans;  // all that were made, where they are to be saved
};

struct Shape {
  std::array<int64_t, 3> grid{};
  int64_t heads = 8;
  int64_t head_dim = 64;
  int64_t layers = 0;       // of the model, if there is one
  std::string fingerprint;  // of its files
};

PlanKey key_of(const AttentionCall& call, int64_t buckets) {
  const int64_t bucket = step_bucket(call.context, buckets);
  return {call.layer, call.role, call.context.guidance_branch, bucket};
}

// Tokens of the transformer for the request, from the folder's configurations alone.
Shape shape_of_model(const GenerateOptions& options) {
  Report report;
  const auto folder = pipelines::ModelFolder::open(options.model, report);
  Config transformer = folder.config("transformer"), vae = folder.config("vae");
  const auto network = models::WanConfig::read(transformer);
  const auto autoencoder = models::WanVaeConfig::read(vae);
  const int64_t spatial = autoencoder.scale_factor_spatial;
  const auto& patch = network.patch_size;
  const auto side = [](const char* option, int64_t value, int64_t unit) {
    require(value >= unit && value % unit == 0, ErrorCode::usage, option, "expected a multiple of ",
            unit, ", got ", value);
    return value / unit;
  };
  const int64_t temporal = autoencoder.scale_factor_temporal;
  require(options.num_frames >= 1 && options.num_frames % temporal == 1 % temporal,
          ErrorCode::usage, "--num-frames", "expected ", temporal, "k + 1, got ",
          options.num_frames);
  const int64_t frames = side("--num-frames", (options.num_frames - 1) / temporal + 1, patch[0]);
  return {{frames, side("--height", options.height, spatial * patch[1]),
           side("--width", options.width, spatial * patch[2])},
          network.num_attention_heads,
          network.attention_head_dim,
          network.num_layers,
          folder.fingerprint()};
}

Shape shape_of(const PlanOptions& options) {
  const bool has_model = !options.generate.model.empty();
  require(has_model || !options.grid.empty(), ErrorCode::usage, "--grid",
          "give --grid FxHxW or --model");
  Shape shape;
  if (has_model) shape = shape_of_model(options.generate);
  if (!options.grid.empty()) shape.grid = parse_grid(options.grid, "--grid");
  if (options.heads > 0) shape.heads = options.heads;
  if (options.head_dim > 0) shape.head_dim = options.head_dim;
  const int64_t area = shape.grid[1] * shape.grid[2];
  require(area <= kMaxTokens && shape.grid[0] * area + options.text_len <= kMaxTokens,
          ErrorCode::resource, "--grid", "more than ", kMaxTokens, " tokens");
  return shape;
}

// A call with random q and k.
Shown plan_of_noise(const PlanOptions& options, PlanRecipe attention) {
  const Shape shape = shape_of(options);
  AttentionCall call;
  call.q_layout = TokenLayout::grid(shape.grid[0], shape.grid[1], shape.grid[2]);
  if (options.text_len > 0) {
    call.q_layout.append(TokenLayout::text(options.text_len));
    call.role = AttentionRole::joint;
  }
  call.kv_layout = call.q_layout;
  auto generator = at::detail::createCPUGenerator(options.generate.seed);
  const std::vector<int64_t> sizes = {1, shape.heads, call.q_layout.seq_len(), shape.head_dim};
  call.q = at::randn(sizes, generator, at::TensorOptions().dtype(at::kFloat));
  call.k = at::randn(sizes, generator, at::TensorOptions().dtype(at::kFloat));
  call.v = call.k;
  call.context.step = options.step;
  call.layer = options.layer;
  attention = for_model(std::move(attention), shape.fingerprint);
  const auto planner = make_planner(attention.planner, attention.options);
  const auto plan_of = [&](const AttentionCall& asked) {
    return planner->plans(asked.role) ? planner->plan(asked) : AttentionPlan::dense("dense");
  };
  std::optional<PlanStore> plans;
  if (!options.save.empty()) {
    plans.emplace(shape.fingerprint, planner->recipe(attention.options), /*buckets=*/1);
    const int64_t first = shape.layers > 0 ? 0 : options.layer;
    const int64_t last = shape.layers > 0 ? shape.layers - 1 : options.layer;
    AttentionCall asked = call;
    for (asked.layer = first; asked.layer <= last; ++asked.layer) {
      plans->put(key_of(asked, 1), plan_of(asked), asked);
    }
  }
  AttentionPlan plan = plan_of(call);
  return {std::move(plan), std::move(call), str("random q and k of seed ", options.generate.seed),
          std::move(plans)};
}

// The plan of a step and layer of a generation, of the pass with the prompt.
Shown plan_of_prompt(const PlanOptions& options) {
  GenerateOptions generate = options.generate;
  generate.quiet = generate.quiet || generate.json;  // standard output is the table's
  generate.json = false;
  std::vector<Job> jobs = make_jobs(generate);
  VideoRun run(generate, jobs);
  require(options.step < generate.steps, ErrorCode::usage, "--step", "expected a number below ",
          generate.steps, ", got ", options.step);
  run.prepare(jobs);
  std::optional<Shown> found;
  const PlanRecipe attention = for_model(run.attention(), run.fingerprint());
  std::optional<PlanStore> plans;
  if (!options.save.empty()) {
    const auto planner = make_planner(attention.planner, attention.options);
    plans.emplace(run.fingerprint(), planner->recipe(attention.options), generate.steps);
  }
  run.pipeline().set_attention(
      attention.planner, attention.options,
      [&](const AttentionCall& call, const AttentionPlan& plan, const AttentionResult&) {
        const bool planned = call.role == AttentionRole::self || call.role == AttentionRole::joint;
        const StepContext& context = call.context;
        if (planned && plans) plans->put(key_of(call, generate.steps), plan, call);
        if (!planned || context.step != options.step || call.layer != options.layer ||
            context.guidance_branch != GuidanceBranch::conditional) {
          return;
        }
        found = {plan, call,
                 str("step ", options.step, " of ", context.num_steps, ", layer ", options.layer,
                     " of '", generate.prompt, "'"),
                 std::nullopt};
      });
  run.pipeline().denoise(jobs.front().request,
                         {.on_step = {}, .resume = {}, .last_step = options.step + 1});
  require(found.has_value(), ErrorCode::usage, "--layer", "the network has no layer ",
          options.layer);
  found->plans = std::move(plans);
  return std::move(*found);
}

struct Counts {
  int64_t exact = 0, partial = 0, summary = 0;
};

Counts count_blocks(const PlanMap& map) {
  Counts out;
  for (size_t i = 0; i < map.classes.size(); ++i) {
    out.summary += map.classes[i] >= block_class::first_summary;
    out.exact += map.classes[i] == block_class::exact;
    out.partial += map.classes[i] == block_class::exact && map.seen[i] < 1;
  }
  return out;
}

Json json_of(const PlanView& view, const Json& head) {
  Json out = head;
  out["head_classes"] = Json::array();
  for (const HeadClass& shown : view.classes) {
    const auto [least, most] =
        std::minmax_element(shown.map.row_density.begin(), shown.map.row_density.end());
    const Counts counts = count_blocks(shown.map);
    out["head_classes"].push_back({{"heads", shown.heads},
                                   {"density", shown.map.density},
                                   {"least_row_density", *least},
                                   {"most_row_density", *most},
                                   {"q_blocks", shown.map.q_blocks()},
                                   {"kv_blocks", shown.map.kv_blocks()},
                                   {"exact_blocks", counts.exact},
                                   {"partial_blocks", counts.partial},
                                   {"summary_blocks", counts.summary}});
  }
  return out;
}

void print_table(const Json& json) {
  std::printf("%s\n\n", json["plan"].get<std::string>().c_str());
  std::printf(
      "| heads | density | least row | most row | blocks | exact | of them partial | "
      "summary |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n");
  for (const Json& row : json["head_classes"]) {
    std::string heads = HeadClass{row["heads"].get<std::vector<int64_t>>(), {}}.name();
    heads = heads.substr(heads.find(' ') + 1);
    std::printf("| %s | %.4f | %.4f | %.4f | %ldx%ld | %ld | %ld | %ld |\n", heads.c_str(),
                row["density"].get<double>(), row["least_row_density"].get<double>(),
                row["most_row_density"].get<double>(), row["q_blocks"].get<int64_t>(),
                row["kv_blocks"].get<int64_t>(), row["exact_blocks"].get<int64_t>(),
                row["partial_blocks"].get<int64_t>(), row["summary_blocks"].get<int64_t>());
  }
  std::printf("\ndensity of all heads: %.4f\n", json["density"].get<double>());
}

PlanView view_of(const Shown& shown, const std::string& title) {
  PlanView view;
  view.title = title;
  view.notes = {shown.plan.describe(),
                str(shown.call.q_layout.describe(), ", ", shown.call.q.size(1), " heads of ",
                    shown.call.q.size(3), "; ", shown.source),
                "queries downwards, keys to the right"};
  view.q_layout = shown.call.q_layout;
  view.kv_layout = shown.call.kv_layout;
  view.in_rows = shown.plan.q_order.is_identity() && shown.plan.kv_order.is_identity();
  if (view.in_rows) view.notes.back() += "; ticks: frames";
  const std::vector<PlanMap> maps = plan_maps(shown.plan, shown.call);
  require(!maps.empty(), ErrorCode::usage, "plan",
          "has no softmax over blocks to draw: ", shown.plan.describe());
  view.classes = head_classes(maps, shown.call.q.size(1));
  for (const Branch& branch : shown.plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    if (softmax == nullptr || softmax->keys) continue;
    view.summaries = softmax->selection.summaries;
    break;
  }
  return view;
}

void check_options(const PlanOptions& options) {
  const auto within = [](const char* option, int64_t value, int64_t high) {
    require(value >= 0 && value <= high, ErrorCode::usage, option, "expected 0 to ", high, ", got ",
            value);
  };
  within("--heads", options.heads, kMaxHeads);
  within("--head-dim", options.head_dim, kMaxDim);
  within("--text-len", options.text_len, kMaxTokens);
  within("--step", options.step, kMaxTokens);
  within("--layer", options.layer, kMaxTokens);
  const GenerateOptions& generate = options.generate;
  if (!generate.out.empty()) {
    require(fs::path(generate.out).extension() == ".png", ErrorCode::usage, "--out",
            "expected a name that ends in .png, got '", generate.out, "'");
    check_output_path(generate.out, generate.overwrite);
  }
  if (!options.save.empty()) const AtomicFolder place(options.save);  // or it says why not
  check_executor_name(make_executors(), generate.executor);           // random q and k meet none
  if (!generate.has_prompt) return;
  require(!generate.model.empty(), ErrorCode::usage, "--prompt", "goes with --model");
  const bool own_shape =
      !options.grid.empty() || options.heads > 0 || options.head_dim > 0 || options.text_len > 0;
  require(!own_shape, ErrorCode::usage, "--prompt",
          "the shape is the model's: --grid, --heads, --head-dim and --text-len do not go with it");
}

}  // namespace

int run_plan(const PlanOptions& options) {
  check_options(options);
  const c10::InferenceMode inference;
  const GenerateOptions& generate = options.generate;
  set_num_threads(generate.threads);
  const PlanRecipe attention = attention_of(generate);
  const Shown shown = guarded("plan", [&] {
    return generate.has_prompt ? plan_of_prompt(options) : plan_of_noise(options, attention);
  });
  std::string title = attention.planner;
  if (!generate.attention_preset.empty()) title = fs::path(generate.attention_preset).stem();
  for (const std::string& option : generate.attention_options) title += " " + option;
  const PlanView view = guarded("plan", [&] { return view_of(shown, title); });
  double density = 0;
  for (const HeadClass& heads : view.classes) {
    density += heads.map.density * static_cast<double>(heads.heads.size()) /
               static_cast<double>(shown.call.q.size(1));
  }
  const Json json = json_of(view, {{"fovea", kVersion},
                                   {"attention", attention.planner},
                                   {"attention_options", attention.options},
                                   {"plan", shown.plan.describe()},
                                   {"layout", shown.call.q_layout.describe()},
                                   {"source", shown.source},
                                   {"density", density}});
  if (shown.plans) shown.plans->save(options.save);
  if (!generate.out.empty()) {
    const std::string bytes = encode_png(draw_plan(view), {{"Comment", json_text(json)}});
    write_text(generate.out, bytes, generate.overwrite);
  }
  if (generate.json) {
    std::printf("%s\n", json_text(json).c_str());
  } else {
    print_table(json);
  }
  return 0;
}

}  // namespace fovea::apps
