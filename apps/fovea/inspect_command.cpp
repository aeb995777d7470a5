#include <cstdio>
#include <memory>
#include <string>

#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "core/check.h"
#include "core/inspect.h"
#include "core/media/picture.h"
#include "core/media/video_reader.h"

namespace fovea::apps {
namespace {

struct InspectOptions {
  std::string path;
  bool json = false;
};

bool has_extension(const fs::path& path, std::initializer_list<const char*> extensions) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const char* wanted : extensions) {
    if (extension == wanted) return true;
  }
  return false;
}

// Key and value lines of a flat object.
std::string lines_of(const Json& object) {
  std::string out;
  for (const auto& [key, value] : object.items()) {
    out += key + ": " + (value.is_string() ? value.get<std::string>() : value.dump()) + "\n";
  }
  return out;
}

Json describe_picture(const fs::path& path) {
  const PictureInfo info = probe_picture(path);
  Json out = {
      {"kind", "picture"}, {"format", info.format}, {"width", info.width}, {"height", info.height}};
  if (info.format == "png") {
    for (const auto& [key, text] : read_png_text(path)) {
      out[key == "Comment" ? "comment" : "text " + key] = text;
    }
  }
  return out;
}

Json describe_video(const fs::path& path) {
  const VideoInfo info = probe_video(path);
  return {{"kind", "video"},           {"format", info.format},
          {"codec", info.codec},       {"pixel_format", info.pixel_format},
          {"width", info.width},       {"height", info.height},
          {"num_frames", info.frames}, {"fps", info.fps.text()},
          {"seconds", info.seconds},   {"comment", info.comment}};
}

int run_inspect(const InspectOptions& options) {
  const fs::path path = options.path;
  Description description;
  if (has_extension(path, {".png", ".jpg", ".jpeg", ".bmp"})) {
    description.json = describe_picture(path);
    description.text = lines_of(description.json);
  } else if (has_extension(path, {".mp4", ".webm", ".gif"})) {
    description.json = describe_video(path);
    description.text = lines_of(description.json);
  } else {
    description = describe(path);
  }
  const std::string out =
      options.json ? description.json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n"
                   : description.text;
  require(std::fwrite(out.data(), 1, out.size(), stdout) == out.size() && std::fflush(stdout) == 0,
          ErrorCode::resource, "standard output", "cannot write");
  return 0;
}

}  // namespace

void add_inspect(CLI::App& app, Action& action) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command = app.add_subcommand(
      "inspect",
      "Say what a weight file, model folder, picture or video holds, without loading weights");
  command->footer(
      "Example:\n  fovea inspect Wan2.1-T2V-1.3B-Diffusers\n  fovea inspect --json video.mp4");
  command->add_option("path", options->path, "File or folder")->required();
  command->add_flag("--json", options->json, "As JSON");
  command->callback([options, &action] { action = [options] { return run_inspect(*options); }; });
}

}  // namespace fovea::apps
