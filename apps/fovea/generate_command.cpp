#include <cstdio>

#include <ATen/ATen.h>
#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/generate_options.h"
#include "apps/fovea/generate_run.h"
#include "core/attention/planner.h"

namespace fovea::apps {
namespace {

constexpr const char* kExample =
    "Example:\n"
    "  fovea generate --model Wan2.1-T2V-1.3B-Diffusers --prompt \"a cat on a skateboard\" \\\n"
    "      --device cuda --dtype bf16 --seed 7 --out cat.mp4\n"
    "Many prompts, one model load, safe to interrupt and repeat:\n"
    "  fovea generate --model MODEL --prompts list.jsonl --out videos/ --resume";

std::string known_planners() {
  std::string names;
  for (const std::string& name : planner_names()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

void add_model_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--model", options.model, "Model folder in diffusers' layout")->required();
  app.add_option("--device", options.device, "cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--dtype", options.dtype, "fp32, bf16 or fp16; the autoencoder stays fp32")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads; 0 = all cores")->capture_default_str();
  app.add_option("--scheduler", options.scheduler, "unipc or euler; default: the folder's");
  app.add_option("--flow-shift", options.flow_shift,
                 "Shift of the noise schedule; default: the folder's");
  app.add_option("--attention", options.attention,
                 "How the transformer's attention is planned: " + known_planners())
      ->capture_default_str();
  app.add_option("--attn", options.attention_options,
                 "KEY=VALUE of that planner, such as density=0.25, window=3,5,5 or dense_steps=6")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_flag("--vae-tiling", options.vae_tiling, "Decode in tiles: less memory, faint seams");
}

void add_request_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--negative-prompt", options.negative_prompt, "What guidance leads away from");
  app.add_option("--image", options.image,
                 "First frame (PNG, JPEG, BMP) for image-to-video models");
  app.add_option("--num-frames", options.num_frames, "4k + 1")->capture_default_str();
  app.add_option("--height", options.height, "Pixels, a multiple of 16")->capture_default_str();
  app.add_option("--width", options.width, "Pixels, a multiple of 16")->capture_default_str();
  app.add_option("--steps", options.steps, "Denoising steps")->capture_default_str();
  app.add_option("--guidance-scale", options.guidance_scale, "Guidance runs above 1")
      ->capture_default_str();
  app.add_option("--seed", options.seed, "Same seed, same video as diffusers with a CPU generator")
      ->capture_default_str();
  app.add_option("--latents", options.latents,
                 "Initial noise: safetensors, key `latents`, fp32 [B, C, T, H, W]");
}

void add_output_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--out", options.out,
                 "Output: .mp4, .webm, .gif, or PNG frames with %d or %03d in the name; a folder "
                 "for --prompts")
      ->required();
  app.add_option("--fps", options.fps, "24, 23.976 (= 24000/1001) or N/D")->capture_default_str();
  app.add_option("--save-latents", options.save_latents,
                 "Also write the final, normalized latents");
  app.add_option("--report", options.report, "Write a JSON report of the run");
  app.add_flag("--resume", options.resume,
               "Keep a state file while running; go on where an interrupted run stopped, skip "
               "finished videos");
  app.add_flag("--overwrite", options.overwrite, "Replace outputs that exist");
  app.add_flag("--strict", options.strict, "Warnings and fallbacks are errors");
  app.add_flag("--json", options.json, "Progress as JSON lines on standard output");
  app.add_flag("--quiet", options.quiet, "No progress");
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
  CLI::Option* prompt = command->add_option("--prompt", options->prompt, "What the video shows");
  command->add_option("--prompts", options->prompts,
                      "JSONL file with one request a line, one model load");
  add_model_options(*command, *options);
  add_request_options(*command, *options);
  add_output_options(*command, *options);
  command->callback([options, prompt, &action] {
    options->has_prompt = prompt->count() > 0;
    action = [options] { return run_generate(*options); };
  });
}

}  // namespace fovea::apps
