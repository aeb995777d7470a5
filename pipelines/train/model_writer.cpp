#include "pipelines/train/model_writer.h"

#include <regex>
#include <set>

#include <ATen/ATen.h>

#include "core/check.h"
#include "models/text/tokenizer/word_tokenizer.h"

namespace fovea::pipelines {
namespace {

constexpr const char* kDiffusersVersion = "0.42.1";  // whose layout is written
constexpr const char* kTransformersVersion = "5.23.0";
constexpr const char* kFileEnd = ".safetensors";
constexpr const char* kIndexEnd = ".safetensors.index.json";

void make_folder(const fs::path& folder) {
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw_errno(error.value(), folder, "make the folder");
}

void write_json(const fs::path& path, const Json& json) {
  AtomicFile file(path, /*overwrite=*/true);
  file.write(json.dump(2) + "\n");
  file.commit();
}

Json of_class(const char* class_name, const Json& keys) {
  Json out = {{"_class_name", class_name}, {"_diffusers_version", kDiffusersVersion}};
  out.update(keys);
  return out;
}

Json model_index() {
  return of_class("WanPipeline", {{"boundary_ratio", nullptr},
                                  {"expand_timesteps", false},
                                  {"scheduler", {"diffusers", "UniPCMultistepScheduler"}},
                                  {"text_encoder", {"transformers", "UMT5EncoderModel"}},
                                  {"tokenizer", {"transformers", "T5Tokenizer"}},
                                  {"transformer", {"diffusers", "WanTransformer3DModel"}},
                                  {"transformer_2", {nullptr, nullptr}},
                                  {"vae", {"diffusers", "AutoencoderKLWan"}}});
}

std::string shard_name(const std::string& stem, size_t index, size_t count) {
  const auto five_digits = [](size_t number) {
    const std::string digits = std::to_string(number);
    return std::string(digits.size() < 5 ? 5 - digits.size() : 0, '0') + digits;
  };
  return str(stem, "-", five_digits(index + 1), "-of-", five_digits(count), kFileEnd);
}

// In the order of names, each shard as full as that allows.
std::vector<TensorMap> split_by_bytes(const TensorMap& tensors, uint64_t max_bytes) {
  std::vector<TensorMap> shards;
  uint64_t bytes = 0;
  for (const auto& [name, tensor] : tensors) {
    require(tensor.defined(), ErrorCode::usage, name, "the tensor is undefined");
    if (shards.empty() || (!shards.back().empty() && bytes + tensor.nbytes() > max_bytes)) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().emplace(name, tensor);
    bytes += tensor.nbytes();
  }
  return shards;
}

void save_file(const fs::path& path, const TensorMap& tensors) {
  save_tensors(path, tensors, /*overwrite=*/true, {{"format", "pt"}});
}

// The same file under a second name.
void add_name(const fs::path& file, const fs::path& second) {
  std::error_code error;
  fs::remove(second, error);
  fs::create_hard_link(file, second, error);
  // Some file systems have no links.
  if (error) fs::copy_file(file, second, error);
  if (error) throw_errno(error.value(), second, "make a second name");
}

// Where the shards in force have names that the new ones take, lets the index know them by others.
void free_names(const fs::path& folder, const std::string& stem,
                const std::set<std::string>& names) {
  const fs::path path = folder / (stem + kIndexEnd);
  std::error_code ignored;
  if (!fs::exists(path, ignored)) return;
  Json index = read_json(path);
  require(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
          ErrorCode::bad_data, path.string(), "key 'weight_map': expected an object");
  std::set<std::string> moved;
  for (auto& [tensor, file] : index["weight_map"].items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (!names.contains(name)) continue;
    file = stem + "-old" + name.substr(stem.size());
    if (moved.insert(name).second) add_name(folder / name, folder / file.get<std::string>());
  }
  if (!moved.empty()) write_json(path, index);
}

// What a save has made in the folder, or an earlier one left there, but for `kept`. Whatever names
// others goes first.
void remove_others(const fs::path& folder, const std::string& stem,
                   const std::set<std::string>& kept) {
  std::vector<fs::path> files = {folder / (stem + kIndexEnd), folder / (stem + kFileEnd)};
  const std::regex shard("(-old)?-[0-9]{5,}-of-[0-9]{5,}\\.safetensors");
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    if (name.starts_with(stem) && std::regex_match(name.substr(stem.size()), shard)) {
      files.push_back(it->path());
    }
  }
  if (error) throw_errno(error.value(), folder, "list the folder");
  for (const fs::path& file : files) {
    if (!kept.contains(file.filename().string())) fs::remove(file, error);
    if (error) throw_errno(error.value(), file, "remove the file");
  }
}

void save_shards(const fs::path& folder, const std::string& stem,
                 const std::vector<TensorMap>& shards) {
  std::set<std::string> names;
  for (size_t i = 0; i < shards.size(); ++i) names.insert(shard_name(stem, i, shards.size()));
  free_names(folder, stem, names);
  uint64_t bytes = 0;
  Json map = Json::object();
  try {
    for (size_t i = 0; i < shards.size(); ++i) {
      const std::string name = shard_name(stem, i, shards.size());
      save_file(folder / name, shards[i]);
      for (const auto& [tensor, values] : shards[i]) {
        map[tensor] = name;
        bytes += values.nbytes();
      }
    }
    write_json(folder / (stem + kIndexEnd),
               {{"metadata", {{"total_size", bytes}}}, {"weight_map", map}});
  } catch (...) {
    std::error_code ignored;
    for (const std::string& name : names) fs::remove(folder / name, ignored);
    throw;
  }
  names.insert(stem + kIndexEnd);
  remove_others(folder, stem, names);
}

}  // namespace

void check_plan(const FolderPlan& plan, const std::string& where) {
  const int64_t ids = models::word_vocab_size(plan.words);
  require(plan.text_encoder.vocab_size >= ids, ErrorCode::bad_data, where,
          "key 'vocab_size': expected the tokenizer's ", ids, " ids, got ",
          plan.text_encoder.vocab_size);
  require(plan.text_encoder.bias_in_each_layer, ErrorCode::bad_data, where,
          "text_encoder: expected a UMT5 encoder, with a position table in each layer");
  require(plan.transformer.text_dim == plan.text_encoder.d_model, ErrorCode::bad_data, where,
          "key 'text_dim': expected the text encoder's d_model, ", plan.text_encoder.d_model,
          ", got ", plan.transformer.text_dim);
  for (const auto& [key, channels] : {std::pair("in_channels", plan.transformer.in_channels),
                                      std::pair("out_channels", plan.transformer.out_channels)}) {
    require(channels == plan.autoencoder.z_dim, ErrorCode::bad_data, where, "key '", key,
            "': expected the autoencoder's z_dim, ", plan.autoencoder.z_dim, ", got ", channels);
  }
}

void write_folder_skeleton(const fs::path& folder, const FolderPlan& plan) {
  check_plan(plan, folder.string());
  for (const char* part : {"scheduler", "text_encoder", "transformer", "vae"}) {
    make_folder(folder / part);
  }
  models::write_word_tokenizer(folder / "tokenizer", plan.words);
  Json text_encoder = models::to_json(plan.text_encoder);
  // Weights may be stored in bf16. Unless told otherwise transformers would run them in that, while
  // diffusers and this project run the rest of the folder in fp32.
  text_encoder["dtype"] = "float32";
  text_encoder["transformers_version"] = kTransformersVersion;
  write_json(folder / "text_encoder" / "config.json", text_encoder);
  write_json(folder / "transformer" / "config.json",
             of_class("WanTransformer3DModel", models::to_json(plan.transformer)));
  write_json(folder / "vae" / "config.json",
             of_class("AutoencoderKLWan", models::to_json(plan.autoencoder)));
  write_json(folder / "scheduler" / "scheduler_config.json", unipc_config(plan.flow_shift));
  write_json(folder / "model_index.json", model_index());
}

Json unipc_config(double flow_shift) {
  return of_class("UniPCMultistepScheduler", {{"beta_end", 0.02},
                                              {"beta_schedule", "linear"},
                                              {"beta_start", 0.0001},
                                              {"disable_corrector", Json::array()},
                                              {"dynamic_thresholding_ratio", 0.995},
                                              {"final_sigmas_type", "zero"},
                                              {"flow_shift", flow_shift},
                                              {"lower_order_final", true},
                                              {"num_train_timesteps", 1000},
                                              {"predict_x0", true},
                                              {"prediction_type", "flow_prediction"},
                                              {"rescale_betas_zero_snr", false},
                                              {"sample_max_value", 1.0},
                                              {"shift_terminal", nullptr},
                                              {"sigma_max", nullptr},
                                              {"sigma_min", nullptr},
                                              {"solver_order", 2},
                                              {"solver_p", nullptr},
                                              {"solver_type", "bh2"},
                                              {"steps_offset", 0},
                                              {"thresholding", false},
                                              {"time_shift_type", "exponential"},
                                              {"timestep_spacing", "linspace"},
                                              {"trained_betas", nullptr},
                                              {"use_beta_sigmas", false},
                                              {"use_dynamic_shifting", false},
                                              {"use_exponential_sigmas", false},
                                              {"use_flow_sigmas", true},
                                              {"use_karras_sigmas", false}});
}

void save_sharded(const fs::path& folder, const std::string& stem, const TensorMap& tensors,
                  uint64_t max_shard_bytes) {
  require(!tensors.empty() && max_shard_bytes > 0, ErrorCode::usage, folder.string(),
          "nothing to save, or shards of 0 bytes");
  make_folder(folder);
  const std::vector<TensorMap> shards = split_by_bytes(tensors, max_shard_bytes);
  if (shards.size() > 1) {
    save_shards(folder, stem, shards);
  } else {
    save_file(folder / (stem + kFileEnd), tensors);
    remove_others(folder, stem, {stem + kFileEnd});
  }
}

}  // namespace fovea::pipelines
