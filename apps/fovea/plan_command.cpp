#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/plan_run.h"

namespace fovea::apps {
namespace {

constexpr const char* kExample =
    "Examples:\n"
    "  fovea plan --attention radial --grid 21x30x52 --heads 12 --out radial.png\n"
    "  fovea plan --attention topk --attn density=0.2 --model assets/models/mini \\\n"
    "      --prompt \"a red sphere rolls left\" --num-frames 17 --height 128 --width 128 \\\n"
    "      --steps 8 --step 3 --layer 2 --out topk.png\n"
    "  fovea plan --attention radial --model assets/models/mini --num-frames 17 --height 128 \\\n"
    "      --width 128 --save radial-plans";

}  // namespace

void add_plan(CLI::App& app, Action& action) {
  auto options = std::make_shared<PlanOptions>();
  CLI::App* command =
      app.add_subcommand("plan", "Draw what a method of attention computes, and print its density");
  command->footer(kExample);
  command->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  GenerateOptions& generate = options->generate;
  add_attention_options(*command, generate);
  command->add_option("--out", generate.out, "Picture to write (.png); without it only the table");
  command->add_flag("--overwrite", generate.overwrite, "Replace a picture that exists");
  command->add_option("--grid", options->grid,
                      "Tokens FRAMESxHEIGHTxWIDTH; default: the model's for the video's size");
  command->add_option("--heads", options->heads, "Default: the model's, or 8");
  command->add_option("--head-dim", options->head_dim, "Default: the model's, or 64");
  command->add_option("--text-len", options->text_len, "Text tokens in one sequence with the grid")
      ->capture_default_str();
  command->add_option("--step", options->step, "Step of the schedule, from 0")
      ->capture_default_str();
  command->add_option("--layer", options->layer, "Layer of the network, from 0")
      ->capture_default_str();
  command->add_option("--save", options->save,
                      "Folder for the plans, for --attention saved: with --prompt of all layers "
                      "and steps up to --step, with --model of all layers");
  add_model_options(*command, generate);
  command->get_option("--model")->required(false)->description(
      "Model folder: its shape; with --prompt the q and k of a step of a generation, else random");
  add_prompt_option(*command, generate);
  add_request_options(*command, generate);
  command->add_flag("--json", generate.json, "Print JSON instead of a table");
  command->add_flag("--quiet", generate.quiet, "No progress");
  command->callback([options, &action] { action = [options] { return run_plan(*options); }; });
}

}  // namespace fovea::apps
