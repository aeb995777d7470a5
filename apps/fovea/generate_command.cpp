#include <cstdio>

#include <ATen/ATen.h>
#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/generate_options.h"
#include "apps/fovea/generate_run.h"

namespace fovea::apps {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  fovea generate --model Wan2.1-T2V-1.3B-Diffusers --prompt \"a cat on a skateboard\" \\\n"
    "      --device cuda --dtype bf16 --seed 7 --out cat.mp4\n"
    "Many prompts, one model load, safe to interrupt and repeat:\n"
    "  fovea generate --model MODEL --prompts list.jsonl --out videos/ --resume";

void add_output_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--out", options.out,
                 "Output: .mp4, .webm, .gif, or PNG frames with %d or %03d in the name; a folder "
                 "for --prompts")
      ->required();
  app.add_option("--save-latents", options.save_latents,
                 "Also write the final, normalized latents");
  app.add_option("--report", options.report, "Write a JSON report of the run");
  app.add_flag("--resume", options.resume,
               "Keep a state file while running; go on where an interrupted run stopped, skip "
               "finished videos");
  app.add_flag("--overwrite", options.overwrite, "Replace outputs that exist");
}

}  // namespace

void add_generate(CLI::App& app, Action& action) {
  // Shared: the options must live until the action runs.
  auto options = std::make_shared<GenerateOptions>();
  CLI::App* command =
      app.add_subcommand("generate", "Generate videos from text, or from a picture and text");
  command->footer(kExample);
  // A wrapper's defaults can be overridden by what its user adds.
  command->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  add_prompt_options(*command, *options);
  add_model_options(*command, *options);
  add_attention_options(*command, *options);
  add_request_options(*command, *options);
  add_output_options(*command, *options);
  add_display_options(*command, *options);
  command->callback([options, &action] { action = [options] { return run_generate(*options); }; });
}

}  // namespace fovea::apps
