#include "pipelines/text_to_video.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "tests/support/golden.h"

namespace fovea::pipelines {
namespace {

using test::golden;
using test::relative_error;

VideoRequest request_of(const Json& item) {
  VideoRequest request;
  request.prompt = item["prompt"];
  request.negative_prompt = item["negative_prompt"];
  if (!item["image"].is_null())
    request.image = golden("pipeline") / item["image"].get<std::string>();
  request.height = item["height"];
  request.width = item["width"];
  request.num_frames = item["num_frames"];
  request.num_steps = item["steps"];
  request.guidance_scale = item["guidance_scale"];
  request.seed = item["seed"];
  return request;
}

struct Result {
  at::Tensor latents;  // [1, z_dim, T, H, W]
  at::Tensor video;    // uint8 [frames, height, width, 3]
};

class Runner {
 public:
  explicit Runner(const fs::path& folder, const PipelineOptions& options = {})
      : report_(/*strict=*/true),
        progress_(make_progress(ProgressStyle::silent)),
        pipeline_(folder, options, report_, *progress_) {}

  VideoPipeline& pipeline() { return pipeline_; }

  Result run(const VideoRequest& request, const DenoiseHooks& hooks = {}) {
    pipeline_.check(request);
    pipeline_.prepare({request});
    Result out;
    out.latents = pipeline_.denoise(request, hooks);
    std::vector<at::Tensor> frames;
    pipeline_.decode(out.latents, [&](const at::Tensor& part) { frames.push_back(part); });
    out.video = at::cat(frames);
    return out;
  }

 private:
  Report report_;
  std::unique_ptr<Progress> progress_;
  VideoPipeline pipeline_;
};

Json find_case(const std::string& name) {
  for (const Json& item : read_json(golden("pipeline") / "cases.json")) {
    if (item["name"] == name) return item;
  }
  ADD_FAILURE() << "no case " << name;
  return {};
}

Result run_case(const Json& item, const DenoiseHooks& hooks = {}) {
  return Runner(golden("pipeline") / item["folder"].get<std::string>())
      .run(request_of(item), hooks);
}

// Every case that tests/golden/make_pipeline.py has run through diffusers: both schedulers, with
// and without guidance, text- and image-to-video.
TEST(VideoPipeline, EqualsDiffusers) {
  const Json cases = read_json(golden("pipeline") / "cases.json");
  ASSERT_GE(cases.size(), 10u);
  for (const Json& item : cases) {
    const std::string name = item["name"];
    const TensorMap expected = load_tensors(golden("pipeline") / (name + ".safetensors"));
    const Result run = run_case(item);
    const double error = relative_error(run.latents, expected.at("latents"));
    EXPECT_LE(error, 1e-3) << name;
    const at::Tensor video = expected.at("video") * 255;
    const double worst = (run.video.to(at::kFloat) - video).abs().max().item<double>();
    // Half a level is what rounding to bytes costs.
    EXPECT_LE(worst, 0.5 + 255 * 1e-3) << name;
    std::printf("%-14s latents %.2e, worst pixel %.3f levels\n", name.c_str(), error, worst);
  }
}

TEST(VideoPipeline, NoiseIsBitIdentical) {
  for (const char* name : {"plain", "long", "euler"}) {
    const Json item = find_case(name);
    const TensorMap expected =
        load_tensors(golden("pipeline") / (std::string(name) + ".safetensors"));
    VideoRequest request = request_of(item);
    Runner drawn(golden("pipeline") / item["folder"].get<std::string>());
    Runner given(golden("pipeline") / item["folder"].get<std::string>());
    const Result from_seed = drawn.run(request);
    request.latents = expected.at("noise");
    EXPECT_TRUE(at::equal(from_seed.latents, given.run(request).latents)) << name;
  }
}

TEST(VideoPipeline, ResumesBitIdentically) {
  for (const char* name : {"plain", "euler", "image_clip"}) {
    const Json item = find_case(name);
    std::vector<DenoiseState> states;
    DenoiseHooks record;
    record.on_step = [&](const DenoiseState& state) {
      DenoiseState copy = state;
      for (auto& [key, tensor] : copy.tensors) tensor = tensor.clone();
      states.push_back(copy);
    };
    const Result whole = run_case(item, record);
    ASSERT_EQ(states.size(), 6u);
    for (const size_t step : {0u, 2u, 5u}) {
      DenoiseHooks resume;
      resume.resume = states[step];
      EXPECT_TRUE(at::equal(run_case(item, resume).latents, whole.latents))
          << name << " after step " << step + 1;
    }
  }
}

TEST(VideoPipeline, LaterRequestsEqualRunsOfTheirOwn) {
  const Json first = find_case("plain"), second = find_case("long");
  Runner both(golden("pipeline") / "t2v-12");
  both.pipeline().prepare({request_of(first), request_of(second)});
  both.pipeline().denoise(request_of(first));
  const at::Tensor latents = both.pipeline().denoise(request_of(second));
  EXPECT_TRUE(at::equal(latents, run_case(second).latents));
}

TEST(VideoPipeline, RunsInBf16) {
  const Json item = find_case("wide_head");
  Runner runner(golden("pipeline") / item["folder"].get<std::string>(), {.dtype = at::kBFloat16});
  const TensorMap expected = load_tensors(golden("pipeline") / "wide_head.safetensors");
  EXPECT_LE(relative_error(runner.run(request_of(item)).latents, expected.at("latents")), 5e-2);
}

TEST(VideoPipeline, TilingOfSmallPicturesChangesNothing) {
  const Json item = find_case("plain");
  Runner tiled(golden("pipeline") / "t2v-12", {.vae_tiling = true});
  EXPECT_TRUE(at::equal(tiled.run(request_of(item)).video, run_case(item).video));
}

std::pair<ErrorCode, std::string> refusal(const std::string& folder, const VideoRequest& request) {
  try {
    Runner(golden("pipeline") / folder).pipeline().check(request);
  } catch (const Error& error) {
    return {error.code(), error.where()};
  }
  return {ErrorCode::internal, "accepted"};
}

TEST(VideoPipeline, RefusesWhatTheModelCannotMake) {
  const VideoRequest good = request_of(find_case("plain"));
  const auto with = [&](auto change) {
    VideoRequest request = good;
    change(request);
    return refusal("t2v-12", request);
  };
  using Refusal = std::pair<ErrorCode, std::string>;
  EXPECT_EQ(with([](VideoRequest&) {}).second, "accepted");
  EXPECT_EQ(with([](VideoRequest& r) { r.num_frames = 6; }),
            (Refusal{ErrorCode::usage, "--num-frames"}));
  EXPECT_EQ(with([](VideoRequest& r) { r.num_frames = 0; }),
            (Refusal{ErrorCode::usage, "--num-frames"}));
  EXPECT_EQ(with([](VideoRequest& r) { r.height = 40; }), (Refusal{ErrorCode::usage, "--height"}));
  EXPECT_EQ(with([](VideoRequest& r) { r.width = -16; }), (Refusal{ErrorCode::usage, "--width"}));
  EXPECT_EQ(with([](VideoRequest& r) { r.num_steps = 0; }), (Refusal{ErrorCode::usage, "--steps"}));
  EXPECT_EQ(with([](VideoRequest& r) { r.guidance_scale = NAN; }),
            (Refusal{ErrorCode::usage, "--guidance-scale"}));
  EXPECT_EQ(with([](VideoRequest& r) { r.width = 8192; }).first, ErrorCode::resource);
  EXPECT_EQ(with([](VideoRequest& r) { r.image = "x.png"; }),
            (Refusal{ErrorCode::usage, "--image"}));
  EXPECT_EQ(with([](VideoRequest& r) {
              r.latents = at::zeros({1, 16, 2, 4, 5});
            }),
            (Refusal{ErrorCode::bad_data, "--latents"}));
  EXPECT_EQ(refusal("i2v-64", good), (Refusal{ErrorCode::usage, "--image"}));
}

}  // namespace
}  // namespace fovea::pipelines
