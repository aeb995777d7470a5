// scene_sheet OUT.png ROWS FRAMES HEIGHT WIDTH SEED [OPTIONS.json]: a contact sheet of rendered
// clips, one a row, and their captions on standard output.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/file.h"
#include "core/media/picture.h"
#include "core/ops/render_scenes.h"
#include "pipelines/train/scene_world.h"

namespace fovea {
namespace {

int run(int argc, char** argv) {
  require(argc == 7 || argc == 8, ErrorCode::usage, "scene_sheet",
          "expected OUT.png ROWS FRAMES HEIGHT WIDTH SEED [OPTIONS.json]");
  const int64_t rows = std::atoll(argv[2]);
  const RenderSize size{
      .frames = std::atoll(argv[3]), .height = std::atoll(argv[4]), .width = std::atoll(argv[5])};
  const uint64_t seed = std::strtoull(argv[6], nullptr, 10);
  Config config = argc == 8 ? Config::read(argv[7]) : Config(Json::object(), "options");
  const pipelines::SceneWorld world(pipelines::SceneOptions::read(config));
  std::vector<kernels::Scene> scenes;
  for (int64_t i = 0; i < rows; ++i) {
    const pipelines::SceneClip clip = world.clip(seed, i);
    std::printf("%lld  %s\n", static_cast<long long>(i), clip.caption.c_str());
    scenes.push_back(clip.scene);
  }
  const at::Tensor clips = render_scenes(scenes, size, at::kCPU);
  const at::Tensor sheet =
      clips.permute({0, 2, 1, 3, 4}).reshape({rows * size.height, size.frames * size.width, 3});
  AtomicFile out(argv[1], true);
  const std::string png =
      encode_png(sheet.const_data_ptr<uint8_t>(), static_cast<int>(sheet.size(1)),
                 static_cast<int>(sheet.size(0)));
  out.write(std::string_view(png));
  out.commit();
  return 0;
}

}  // namespace
}  // namespace fovea

int main(int argc, char** argv) {
  try {
    return fovea::run(argc, argv);
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code();
  }
}
