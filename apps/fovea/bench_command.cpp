#include <CLI/CLI.hpp>

#include "apps/fovea/bench_run.h"
#include "apps/fovea/commands.h"
#include "apps/fovea/generate_options.h"

namespace fovea::apps {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  fovea bench attention --len 1024..16384*4,13312 --dtype fp32,bf16 --repeats 9 \\\n"
    "      --methods \"dense,topk:density=0.1|0.25|0.5,radial\" --format csv --out attention.csv\n"
    "  fovea bench attention --device cuda --dtype bf16 --shape 12x32760x128,40x75600x128 \\\n"
    "      --methods dense,sla:density=0.05:projection=identity --json\n"
    "Each method is timed in turns with LibTorch's scaled_dot_product_attention on the same "
    "random\n"
    "q, k and v, in this order and the opposite one; on a GPU with its cuDNN and its flash "
    "kernel.\n"
    "The speed-up counts a method's planning and lowering, unless that is done once for all calls.";

}  // namespace

void add_bench(CLI::App& app, Action& action) {
  auto options = std::make_shared<BenchOptions>();
  CLI::App* bench = app.add_subcommand("bench", "Measure times");
  bench->require_subcommand(1);
  CLI::App* command = bench->add_subcommand("attention", "Methods of attention beside SDPA");
  command->footer(kExample);
  command->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  command
      ->add_option("--methods,--method,--plan", options->methods,
                   "Planners with their options; '|' makes a method of each value; planners: " +
                       known_planners())
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->capture_default_str();
  command->add_option("--len", options->lengths,
                      "Tokens: numbers, FIRST..LAST*FACTOR, FIRST..LAST+STEP; default: 1024,4096");
  command
      ->add_option("--grid", options->grids,
                   "Tokens as FRAMESxHEIGHTxWIDTH, several with commas; a length gets a grid of "
                   "its own")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--shape", options->shapes,
                      "HEADSxTOKENSxDIM, several with commas, in the place of --len, --grid, "
                      "--heads and --head-dim");
  command->add_option("--executor", options->executor,
                      "Of methods that name none, such as cuda_sm90 or reference");
  command->add_option("--dtype", options->dtypes, "fp32, bf16, fp16, several with commas")
      ->capture_default_str();
  command->add_option("--batch", options->batch, "Items")->capture_default_str();
  command->add_option("--heads", options->heads, "Heads")->capture_default_str();
  command->add_option("--head-dim", options->head_dim, "Channels of a head")->capture_default_str();
  command->add_option("--repeats", options->repeats, "Measurements of each")->capture_default_str();
  command->add_option("--duration", options->duration,
                      "Milliseconds that calls are repeated for in a measurement, and before it; "
                      "default: 50 on a GPU, on a CPU one call");
  command->add_option("--seed", options->seed, "Of q, k and v")->capture_default_str();
  command->add_option("--device", options->device, "cpu, cuda or cuda:N")->capture_default_str();
  command->add_option("--threads", options->threads, "CPU threads; 0 = all cores")
      ->capture_default_str();
  command->add_option("--format", options->format, "md, csv or json")->capture_default_str();
  command->add_flag_callback(
      "--json", [options] { options->format = "json"; }, "The same as --format json");
  command->add_option("--out", options->out, "File to write instead of standard output");
  command->add_flag("--overwrite", options->overwrite, "Replace a file that exists");
  command->add_flag("--quiet", options->quiet, "No progress");
  command->callback(
      [options, &action] { action = [options] { return run_bench_attention(*options); }; });
}

}  // namespace fovea::apps
