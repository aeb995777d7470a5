#include "apps/fovea/generate_options.h"

#include <CLI/CLI.hpp>

#include "core/attention/planner.h"

namespace fovea::apps {

std::string known_planners() {
  std::string names;
  for (const std::string& name : planner_names()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

PlanRecipe attention_of(const GenerateOptions& options) {
  const Json typed = parse_planner_options(options.attention_options, "--attn");
  const std::string& preset = options.attention_preset;
  if (preset.empty()) return {options.attention, typed};
  PlanRecipe out = recipe_from_json(read_json(preset), preset);
  for (const auto& [key, value] : typed.items()) out.options[key] = value;
  make_planner(out.planner, out.options);  // what is wrong is said before anything is loaded
  return out;
}

PlanRecipe for_model(PlanRecipe attention, const std::string& fingerprint) {
  const bool is_open = attention.planner == "saved" && !attention.options.contains("model");
  if (is_open && !fingerprint.empty()) attention.options["model"] = fingerprint;
  return attention;
}

void add_attention_options(CLI::App& app, GenerateOptions& options) {
  CLI::Option* attention =
      app.add_option("--attention", options.attention,
                     "How the transformer's attention is planned: " + known_planners())
          ->capture_default_str();
  app.add_option("--attention-preset", options.attention_preset,
                 "JSON file with a method and its options, such as assets/presets/mini.topk.json")
      ->excludes(attention);
  app.add_option("--attn", options.attention_options,
                 "KEY=VALUE of that planner, such as density=0.25, window=3,5,5 or dense_steps=6")
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
}

void add_prompt_option(CLI::App& app, GenerateOptions& options) {
  app.add_option_function<std::string>(
      "--prompt",
      [&options](const std::string& text) {
        options.prompt = text;
        options.has_prompt = true;
      },
      "What the video shows");
}

void add_prompt_options(CLI::App& app, GenerateOptions& options) {
  add_prompt_option(app, options);
  app.add_option("--prompts", options.prompts,
                 "JSONL file with one request a line, one model load");
}

void add_model_options(CLI::App& app, GenerateOptions& options) {
  app.add_option("--model", options.model, "Model folder in diffusers' layout")->required();
  app.add_option("--device", options.device, "cpu, cuda or cuda:N")->capture_default_str();
  app.add_option("--dtype", options.dtype, "fp32, bf16 or fp16; the autoencoder stays fp32")
      ->capture_default_str();
  app.add_option("--executor", options.executor,
                 "What computes the transformer's attention: auto; checked, which compares some "
                 "rows of each call with the reference in fp64; or one by name")
      ->capture_default_str();
  app.add_option("--threads", options.threads, "CPU threads; 0 = all cores")->capture_default_str();
  app.add_option("--scheduler", options.scheduler, "unipc or euler; default: the folder's");
  app.add_option("--flow-shift", options.flow_shift,
                 "Shift of the noise schedule; default: the folder's");
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
  app.add_option("--fps", options.fps, "24, 23.976 (= 24000/1001) or N/D")->capture_default_str();
}

void add_display_options(CLI::App& app, GenerateOptions& options) {
  app.add_flag("--strict", options.strict, "Warnings and fallbacks are errors");
  app.add_flag("--json", options.json, "Progress as JSON lines on standard output");
  app.add_flag("--quiet", options.quiet, "No progress");
}

}  // namespace fovea::apps
