#include "pipelines/train/output_folder.h"

#include "core/check.h"
#include "core/config.h"
#include "models/text/tokenizer/word_tokenizer.h"
#include "pipelines/train/model_writer.h"

namespace fovea::pipelines {
namespace {

// Refuses keys that nobody reads: a misspelt one must not pass unseen.
Report& strict() {
  static thread_local Report report(/*strict=*/true);
  return report;
}

// Whether a file holds weights or their index.
bool is_weights(const fs::path& file) {
  return file.extension() == ".safetensors" ||
         file.filename().string().ends_with(".safetensors.index.json");
}

void check(std::error_code error, const fs::path& path, const char* action) {
  if (error) throw_errno(error.value(), path, action);
}

}  // namespace

void write_new_folder(const fs::path& folder, const std::vector<std::string>& words,
                      const TrainConfig& config) {
  const fs::path vae = folder / "vae" / "config.json";
  require(fs::is_regular_file(vae), ErrorCode::bad_data, (folder / "vae").string(),
          "holds no autoencoder: run the stage autoencoder first, or start from a folder");
  FolderPlan plan;
  plan.words = words;
  Config vae_keys = Config::read(vae);
  plan.autoencoder = models::WanVaeConfig::read(vae_keys);

  Json text = config.model_config("text_encoder").json();
  if (!text.contains("vocab_size")) text["vocab_size"] = models::word_vocab_size(words);
  Config text_keys(text, config.where + ": model.text_encoder");
  plan.text_encoder = models::Umt5Config::read(text_keys, strict());
  text_keys.finish(strict());

  Config wan_keys = config.model_config("transformer");
  plan.transformer = models::WanConfig::read(wan_keys);
  wan_keys.finish(strict());

  Config scheduler = config.model_config("scheduler");
  plan.flow_shift = scheduler.number("flow_shift", plan.flow_shift);
  scheduler.finish(strict());
  check_plan(plan, config.where + ": model");
  write_folder_skeleton(folder, plan);
}

void copy_model_folder(const fs::path& from, const fs::path& to,
                       const std::set<std::string>& without,
                       const std::set<std::string>& without_weights) {
  std::error_code error;
  fs::create_directories(to, error);
  check(error, to, "create");
  for (const fs::directory_entry& part : fs::directory_iterator(from)) {
    const std::string name = part.path().filename().string();
    if (part.is_regular_file() && part.path().extension() == ".json") {
      fs::copy_file(part.path(), to / name, fs::copy_options::overwrite_existing, error);
      check(error, to / name, "write");
    }
    // Components are flat folders; what else a folder holds is not the model's.
    if (!part.is_directory() || without.contains(name)) continue;
    fs::create_directories(to / name, error);
    check(error, to / name, "create");
    const bool trained = without_weights.contains(name);
    for (const fs::directory_entry& file : fs::directory_iterator(part.path())) {
      if (!file.is_regular_file() || (trained && is_weights(file.path()))) continue;
      const fs::path target = to / name / file.path().filename();
      fs::copy_file(file.path(), target, fs::copy_options::overwrite_existing, error);
      check(error, target, "write");
    }
  }
}

}  // namespace fovea::pipelines
