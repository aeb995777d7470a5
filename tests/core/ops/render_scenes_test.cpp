#include "core/ops/render_scenes.h"

#include <cmath>
#include <csignal>
#include <limits>

#include "core/check.h"
#include "core/interrupt.h"
#include "tests/core/ops/op_rules.h"
#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;

std::vector<kernels::Scene> some_scenes() {
  using kernels::CameraMove, kernels::Motion, kernels::Shape;
  std::vector<kernels::Scene> scenes(2);
  scenes[0].num_solids = 3;
  scenes[0].solids[0] = {.shape = Shape::torus,
                         .motion = Motion::spin,
                         .shiny = true,
                         .colour = {0.9f, 0.2f, 0.1f},
                         .x = -2,
                         .travel = 0.5f};
  scenes[0].solids[1] = {.shape = Shape::cube,
                         .motion = Motion::bounce,
                         .colour = {0.1f, 0.3f, 0.9f},
                         .size = 0.7f,
                         .yaw = 0.1f,
                         .travel = 1.4f};
  scenes[0].solids[2] = {.shape = Shape::cone,
                         .motion = Motion::closer,
                         .shiny = true,
                         .colour = {0.1f, 0.7f, 0.2f},
                         .x = 2,
                         .z = -1,
                         .travel = 2};
  scenes[0].camera = {CameraMove::orbit_right, 0.1f};
  scenes[1].num_solids = 2;
  scenes[1].solids[0] = {.shape = Shape::sphere,
                         .motion = Motion::fall,
                         .shiny = true,
                         .colour = {0.9f, 0.9f, 0.9f},
                         .x = -1,
                         .travel = 2};
  scenes[1].solids[1] = {.shape = Shape::cylinder,
                         .motion = Motion::left,
                         .colour = {0.1f, 0.1f, 0.1f},
                         .x = 2,
                         .travel = 1};
  scenes[1].camera = {CameraMove::rise, 2.5f};
  return scenes;
}

const RenderSize kSmall{.frames = 3, .height = 24, .width = 40};

TEST(RenderScenes, GivesOneClipAScene) {
  const auto scenes = some_scenes();
  const at::Tensor clips = render_scenes(scenes, kSmall, at::kCPU);
  EXPECT_EQ(clips.sizes(), (std::vector<int64_t>{2, 3, 24, 40, 3}));
  EXPECT_EQ(clips.scalar_type(), at::kByte);
  EXPECT_TRUE(clips.is_contiguous());
  // Clips do not depend on their neighbours, and frames differ.
  const at::Tensor second = render_scenes({&scenes[1], 1}, kSmall, at::kCPU);
  EXPECT_TRUE(at::equal(clips[1], second[0]));
  EXPECT_FALSE(at::equal(clips[0][0], clips[0][2]));
  EXPECT_EQ(render_scenes({}, kSmall, at::kCPU).size(0), 0);
}

TEST(RenderScenes, ClipsOfAnyLengthShowTheSameAction) {
  const auto scenes = some_scenes();
  const at::Tensor five = render_scenes(scenes, {.frames = 5, .height = 16, .width = 16}, at::kCPU);
  const at::Tensor nine = render_scenes(scenes, {.frames = 9, .height = 16, .width = 16}, at::kCPU);
  for (int f = 0; f < 5; ++f) {
    EXPECT_TRUE(at::equal(five.select(1, f), nine.select(1, 2 * f))) << f;
  }
  const at::Tensor one = render_scenes(scenes, {.frames = 1, .height = 16, .width = 16}, at::kCPU);
  EXPECT_TRUE(at::equal(one.select(1, 0), five.select(1, 0)));
}

TEST(RenderScenes, MoreSamplesSmoothTheEdges) {
  const auto scenes = some_scenes();
  RenderSize size{.frames = 1, .height = 32, .width = 32, .samples = 1};
  const at::Tensor one = render_scenes(scenes, size, at::kCPU);
  size.samples = 4;
  const at::Tensor four = render_scenes(scenes, size, at::kCPU);
  // Four samples of a pixel are what one sample of a finer picture shows, about.
  const at::Tensor fine =
      render_scenes(scenes, {.frames = 1, .height = 256, .width = 256, .samples = 1}, at::kCPU);
  const at::Tensor mean =
      fine.to(at::kFloat).reshape({2, 1, 32, 8, 32, 8, 3}).mean(at::IntArrayRef{3, 5});
  const auto error = [&](const at::Tensor& clip) {
    return (clip.to(at::kFloat) - mean).square().mean().item<double>();
  };
  EXPECT_LT(error(four), 0.5 * error(one));
}

TEST(RenderScenes, RefusesSizesByName) {
  const auto scenes = some_scenes();
  const auto refused = [&](const char* text, RenderSize size, ErrorCode code = ErrorCode::usage) {
    expect_error(code, text, [&] { render_scenes(scenes, size, at::kCPU); });
  };
  refused("key 'frames': expected 1 to 20000, got 0", {.frames = 0});
  refused("key 'frames'", {.frames = 20001});
  refused("key 'height': expected 1 to 4096, got -1", {.height = -1});
  refused("key 'height'", {.height = 4097});
  refused("key 'width': expected 1 to 4096, got 0", {.width = 0});
  refused("key 'width'", {.width = std::numeric_limits<int64_t>::max()});
  refused("key 'samples': expected 1 or 4, got 2", {.samples = 2});
  refused("2 clips of 20000 x 4096 x 4096", {.frames = 20000, .height = 4096, .width = 4096},
          ErrorCode::resource);
}

TEST(RenderScenes, RefusesScenesThatCannotBeDrawn) {
  const auto refused = [](const char* text, auto change) {
    auto scenes = some_scenes();
    change(scenes[1]);
    expect_error(ErrorCode::bad_data, text, [&] { render_scenes(scenes, kSmall, at::kCPU); });
  };
  refused("scene 1: key 'num_solids': expected 1 to 3, got 0",
          [](kernels::Scene& s) { s.num_solids = 0; });
  refused("got 4", [](kernels::Scene& s) { s.num_solids = 4; });
  refused("scene 1: key 'size'", [](kernels::Scene& s) { s.solids[1].size = 0; });
  refused("not finite", [](kernels::Scene& s) { s.solids[0].x = NAN; });
  refused("not finite", [](kernels::Scene& s) { s.camera.travel = INFINITY; });
}

TEST(RenderScenes, RefusesOtherDevices) {
  const auto scenes = some_scenes();
  expect_error(ErrorCode::device, "cannot render on meta",
               [&] { render_scenes(scenes, kSmall, at::kMeta); });
}

TEST(RenderScenes, StopsWhenInterrupted) {
  const auto scenes = some_scenes();
  request_interrupt(SIGINT);
  expect_error(ErrorCode::interrupted, "SIGINT", [&] { render_scenes(scenes, kSmall, at::kCPU); });
  request_interrupt(0);
}

TEST(RenderScenes, CudaGivesTheBytesOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  const auto scenes = some_scenes();
  for (const int64_t samples : {1, 4}) {
    const RenderSize size{.frames = 5, .height = 67, .width = 101, .samples = samples};
    const at::Tensor cpu = render_scenes(scenes, size, at::kCPU);
    const at::Tensor cuda = render_scenes(scenes, size, at::Device("cuda:0"));
    EXPECT_TRUE(cuda.is_cuda());
    const at::Tensor difference = (cpu.to(at::kInt) - cuda.cpu().to(at::kInt)).abs();
    EXPECT_EQ(difference.max().item<int>(), 0)
        << (difference > 0).sum().item<int64_t>() << " of " << difference.numel() << " differ";
  }
}

}  // namespace
}  // namespace fovea
