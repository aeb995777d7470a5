#include "pipelines/model_folder.h"

#include <algorithm>
#include <fstream>
#include <utility>
#include <vector>

#include "core/check.h"

namespace fovea::pipelines {
namespace {

// The class a component has, or nothing where model_index.json says [null, null] or leaves it out.
std::optional<std::string> component_class(const Config& index, const std::string& name) {
  if (!index.has(name)) return std::nullopt;
  const Json& value = index.json().at(name);
  if (!value.is_array() || value.size() != 2) index.refuse(name, "expected [library, class]");
  if (value[1].is_null()) return std::nullopt;
  if (!value[1].is_string()) index.refuse(name, "expected [library, class]");
  return value[1].get<std::string>();
}

// Returns the component's class.
std::string check_component(const Config& index, const fs::path& folder, const std::string& name,
                            const std::vector<std::string>& classes) {
  const auto found = component_class(index, name);
  if (!found) index.refuse(name, "the component is missing");
  bool known = false;
  std::string list;
  for (const std::string& wanted : classes) {
    known = known || *found == wanted;
    list += list.empty() ? wanted : " or " + wanted;
  }
  if (!known) index.refuse(name, "expected " + list);
  std::error_code ignored;
  require(fs::is_directory(folder / name, ignored), ErrorCode::bad_data, (folder / name).string(),
          "is missing, but model_index.json names it");
  return *found;
}

// Size of the file and 64 samples spread evenly over it.
std::string sample_file(const fs::path& path) {
  constexpr uint64_t kSamples = 64;
  constexpr uint64_t kSampleBytes = 4096;
  const uint64_t size = check_regular_file(path);
  std::string out = str(size, ":");
  std::ifstream file(path, std::ios::binary);
  std::string buffer(kSampleBytes, '\0');
  for (uint64_t i = 0; i < kSamples; ++i) {
    file.seekg(static_cast<std::streamoff>(size / kSamples * i));
    file.read(buffer.data(), static_cast<std::streamsize>(kSampleBytes));
    out.append(buffer, 0, static_cast<size_t>(file.gcount()));
    file.clear();
  }
  return out;
}

}  // namespace

ModelFolder ModelFolder::open(const fs::path& path, Report& report) {
  std::error_code ignored;
  require(fs::is_directory(path, ignored), ErrorCode::bad_data, path.string(),
          "no such model folder");
  Config index = Config::read(path / "model_index.json");
  ModelFolder out;
  out.path = path;
  const std::string kind = index.has("_class_name") ? index.text("_class_name", "") : "";
  if (kind != "WanPipeline" && kind != "WanImageToVideoPipeline") {
    index.refuse("_class_name", "expected WanPipeline or WanImageToVideoPipeline");
  }
  out.image_to_video = kind == "WanImageToVideoPipeline";
  if (index.has("boundary_ratio"))
    index.refuse("boundary_ratio", "two-stage models (Wan2.2) are not supported");
  if (component_class(index, "transformer_2")) {
    index.refuse("transformer_2", "two-stage models (Wan2.2) are not supported");
  }
  if (index.boolean("expand_timesteps", false)) {
    index.refuse("expand_timesteps", "per-token timesteps (Wan2.2-TI2V) are not supported");
  }
  out.tokenizer_class = check_component(
      index, path, "tokenizer",
      {"T5Tokenizer", "T5TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend"});
  out.text_encoder_class =
      check_component(index, path, "text_encoder", {"UMT5EncoderModel", "T5EncoderModel"});
  check_component(index, path, "transformer", {"WanTransformer3DModel"});
  check_component(index, path, "vae", {"AutoencoderKLWan"});
  check_component(index, path, "scheduler",
                  {"UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"});
  out.has_image_encoder = component_class(index, "image_encoder").has_value();
  if (out.has_image_encoder) {
    check_component(index, path, "image_encoder",
                    {"CLIPVisionModel", "CLIPVisionModelWithProjection"});
    check_component(index, path, "image_processor",
                    {"CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil"});
  }
  index.ignore({"scheduler", "text_encoder", "tokenizer", "transformer", "transformer_2", "vae",
                "image_encoder", "image_processor", "boundary_ratio"});
  index.finish(report);
  return out;
}

Config ModelFolder::config(const std::string& component_name, const std::string& file) const {
  return Config::read(component(component_name) / file);
}

std::string ModelFolder::fingerprint() const {
  std::vector<fs::path> files;
  std::error_code error;
  for (fs::recursive_directory_iterator it(path, error), end; it != end && !error;
       it.increment(error)) {
    const std::string extension = it->path().extension().string();
    if (extension == ".json" || extension == ".safetensors") files.push_back(it->path());
  }
  require(!error, ErrorCode::bad_data, path.string(), "cannot list: ", error.message());
  std::sort(files.begin(), files.end());
  std::string all;
  for (const fs::path& file : files) {
    all += str(fs::relative(file, path).string(), "\n", sha256(sample_file(file)), "\n");
  }
  return sha256(all);
}

}  // namespace fovea::pipelines
