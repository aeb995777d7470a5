#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/attention/plan_recipe.h"

namespace CLI {
class App;
}

namespace fovea::apps {

/// The command line of `fovea generate`, as typed; other commands share most of it.
struct GenerateOptions {
  std::string model;
  std::string prompt;
  std::string negative_prompt;
  std::string image;
  std::string out;
  std::string prompts;  ///< JSONL file; `out` is then a folder
  int64_t num_frames = 81;
  int64_t height = 480;
  int64_t width = 832;
  int64_t steps = 50;
  double guidance_scale = 5.0;
  std::optional<double> flow_shift;
  std::string scheduler;
  uint64_t seed = 0;
  std::string fps = "16";
  std::string dtype = "fp32";
  std::string device = "cpu";
  int threads = 0;
  bool vae_tiling = false;
  std::string attention = "dense";
  std::vector<std::string> attention_options;  ///< KEY=VALUE
  std::string attention_preset;                ///< JSON file, instead of `attention`
  std::string executor = "auto";
  bool resume = false;
  bool overwrite = false;
  bool strict = false;
  bool json = false;
  bool quiet = false;
  std::string report;
  std::string latents;
  std::string save_latents;
  bool has_prompt = false;  ///< --prompt was given, even if empty
};

// Options that commands which make videos have in common; `options` must live until the action.
void add_attention_options(CLI::App& app, GenerateOptions& options);
void add_prompt_option(CLI::App& app, GenerateOptions& options);
void add_prompt_options(CLI::App& app, GenerateOptions& options);
void add_model_options(CLI::App& app, GenerateOptions& options);
void add_request_options(CLI::App& app, GenerateOptions& options);
void add_display_options(CLI::App& app, GenerateOptions& options);

/// What --attention or --attention-preset, and --attn, which comes after the preset's options, say.
///
/// throws  Error bad_data for a preset that cannot be read; usage for one whose method or options
/// do
///         not exist
PlanRecipe attention_of(const GenerateOptions& options);

/// The same, to be used with a model of this fingerprint alone: `saved` compares it with its
/// plans'.
PlanRecipe for_model(PlanRecipe attention, const std::string& fingerprint);

/// Names of all planners, with commas, for help texts.
std::string known_planners();

}  // namespace fovea::apps
