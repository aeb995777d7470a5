#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/compare_run.h"

namespace fovea::apps {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  fovea compare --model assets/models/mini --prompt \"a red sphere rolls left\" \\\n"
    "      --num-frames 17 --height 128 --width 128 --steps 20 \\\n"
    "      --methods radial,topk:density=0.1|0.25:dense_steps=4 --out comparison\n"
    "The folder then holds compare.html (all in one page), compare.md, .csv and .json, and for "
    "each\n"
    "prompt a video of all methods side by side, a contact sheet and each method's own video.";

}  // namespace

void add_compare(CLI::App& app, Action& action) {
  auto options = std::make_shared<CompareOptions>();
  CLI::App* command = app.add_subcommand(
      "compare", "Run dense attention and other methods on the same prompts: quality and time");
  command->footer(kExample);
  command->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  GenerateOptions& generate = options->generate;
  add_prompt_options(*command, generate);
  command
      ->add_option("--methods", options->methods,
                   "What dense is compared with: planners with their options, as in "
                   "radial,topk:density=0.1|0.25,window:tile=2,8,8 ('|' makes a method of each "
                   "value; executor=NAME says what computes it, as in dense:executor=sdpa); "
                   "planners: " +
                       known_planners())
      ->required()
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  command->add_option("--lpips", options->lpips,
                      "safetensors file with a network of Python's package lpips: LPIPS beside "
                      "PSNR and SSIM (apps/README.md says how to make the file)");
  command->add_option("--out", generate.out, "A new folder")->required();
  add_model_options(*command, generate);
  add_request_options(*command, generate);
  add_display_options(*command, generate);
  command->callback([options, &action] { action = [options] { return run_compare(*options); }; });
}

}  // namespace fovea::apps
