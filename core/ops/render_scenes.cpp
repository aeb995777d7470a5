#include "core/ops/render_scenes.h"

#include <cmath>
#include <vector>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/ops/launch.h"
#include "core/parallel.h"
#include "kernels/scene/render.h"

namespace fovea {
namespace {

constexpr const char* kOp = "render_scenes";
constexpr int64_t kMaxPixels = int64_t{8} << 30;

void check_range(const char* key, int64_t value, int64_t high) {
  require(value >= 1 && value <= high, ErrorCode::usage, kOp, "key '", key, "': expected 1 to ",
          high, ", got ", value);
}

void check_size(const RenderSize& size, int64_t num_scenes) {
  check_range("frames", size.frames, 20000);
  check_range("height", size.height, 4096);
  check_range("width", size.width, 4096);
  require(size.samples == 1 || size.samples == 4, ErrorCode::usage, kOp,
          "key 'samples': expected 1 or 4, got ", size.samples);
  const int64_t clip = size.frames * size.height * size.width;
  require(num_scenes <= kMaxPixels / clip, ErrorCode::resource, kOp, num_scenes, " clips of ",
          size.frames, " x ", size.height, " x ", size.width, " are more than ", kMaxPixels,
          " pixels");
}

bool finite(const kernels::Scene& scene) {
  double sum = scene.camera.travel;
  for (int i = 0; i < scene.num_solids; ++i) {
    const kernels::Solid& solid = scene.solids[i];
    for (const float value : {solid.colour[0], solid.colour[1], solid.colour[2], solid.size,
                              solid.x, solid.z, solid.yaw, solid.travel})
      sum += value;
  }
  return std::isfinite(sum);
}

void check_scene(const kernels::Scene& scene, size_t index) {
  require(scene.num_solids >= 1 && scene.num_solids <= kernels::kMaxSolids, ErrorCode::bad_data,
          kOp, "scene ", index, ": key 'num_solids': expected 1 to ", kernels::kMaxSolids, ", got ",
          scene.num_solids);
  require(finite(scene), ErrorCode::bad_data, kOp, "scene ", index, ": a number is not finite");
  for (int i = 0; i < scene.num_solids; ++i) {
    require(scene.solids[i].size > 0, ErrorCode::bad_data, kOp, "scene ", index,
            ": key 'size': expected above 0, got ", scene.solids[i].size);
  }
}

/// [scenes * frames] poses as bytes on the CPU.
at::Tensor poses_of(std::span<const kernels::Scene> scenes, int64_t frames) {
  const auto count = static_cast<int64_t>(scenes.size()) * frames;
  const at::Tensor bytes =
      at::empty({count * static_cast<int64_t>(sizeof(kernels::ScenePose))}, at::kByte);
  auto* pose = reinterpret_cast<kernels::ScenePose*>(bytes.data_ptr<uint8_t>());
  for (const kernels::Scene& scene : scenes) {
    throw_if_interrupted();
    for (int64_t f = 0; f < frames; ++f) {
      const double time = frames == 1 ? 0.0 : static_cast<double>(f) / (frames - 1);
      *pose++ = kernels::pose_at(scene, time);
    }
  }
  return bytes;
}

void render_on_cpu(const kernels::RenderArgs& args) {
  const int64_t rows = args.num_pictures * args.height;
  parallel_for(rows, std::max(1, args.height / 8), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      throw_if_interrupted();
      const bool done = ops::accepted(kOp, kernels::render_cpu(args, {row, row + 1}));
      FOVEA_ASSERT(done);
    }
  });
}

}  // namespace

at::Tensor render_scenes(std::span<const kernels::Scene> scenes, const RenderSize& size,
                         at::Device device) {
  const auto num_scenes = static_cast<int64_t>(scenes.size());
  check_size(size, num_scenes);
  for (size_t i = 0; i < scenes.size(); ++i) check_scene(scenes[i], i);
#if FOVEA_HAS_CUDA
  const bool known = device.is_cpu() || device.is_cuda();
#else
  const bool known = device.is_cpu();
#endif
  require(known, ErrorCode::device, kOp, "this build cannot render on ", device);

  const at::Tensor out = at::empty({num_scenes, size.frames, size.height, size.width, 3},
                                   at::TensorOptions(device).dtype(at::kByte));
  const at::Tensor poses = poses_of(scenes, size.frames).to(device);
  const kernels::RenderArgs args{
      .poses = reinterpret_cast<const kernels::ScenePose*>(poses.const_data_ptr<uint8_t>()),
      .out = out.data_ptr<uint8_t>(),
      .num_pictures = num_scenes * size.frames,
      .height = static_cast<int>(size.height),
      .width = static_cast<int>(size.width),
      .samples = static_cast<int>(size.samples)};
#if FOVEA_HAS_CUDA
  if (device.is_cuda()) {
    require(ops::accepted(kOp, kernels::render_cuda(args, ops::cuda_target(out.device()))),
            ErrorCode::resource, kOp, "more tiles than one launch takes: render fewer clips");
    return out;
  }
#endif
  render_on_cpu(args);
  return out;
}

}  // namespace fovea
