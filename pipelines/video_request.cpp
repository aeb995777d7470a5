#include "pipelines/video_request.h"

#include "core/check.h"
#include "core/media/video_reader.h"
#include "pipelines/guidance.h"

namespace fovea::pipelines {
namespace {

constexpr int64_t kMaxSteps = 10'000;

void check_positive(const char* option, int64_t value) {
  require(value >= 1, ErrorCode::usage, option, "expected at least 1, got ", value);
}

}  // namespace

Json VideoRequest::settings() const {
  Json out;
  out["prompt"] = prompt;
  out["negative_prompt"] = negative_prompt;
  if (!image.empty()) out["image_sha256"] = sha256_file(image);
  out["height"] = height;
  out["width"] = width;
  out["num_frames"] = num_frames;
  out["steps"] = num_steps;
  out["guidance_scale"] = guidance_scale;
  out["seed"] = seed;
  return out;
}

void check_request(const VideoRequest& request) {
  check_positive("--height", request.height);
  check_positive("--width", request.width);
  check_positive("--num-frames", request.num_frames);
  check_positive("--steps", request.num_steps);
  require(request.num_steps <= kMaxSteps, ErrorCode::resource, "--steps", "is limited to ",
          kMaxSteps, ", got ", request.num_steps);
  require(request.height % 16 == 0, ErrorCode::usage, "--height", "expected a multiple of 16, got ",
          request.height);
  require(request.width % 16 == 0, ErrorCode::usage, "--width", "expected a multiple of 16, got ",
          request.width);
  check_video_size(request.width, request.height, request.num_frames, "video");
  check_guidance_scale(request.guidance_scale);
}

}  // namespace fovea::pipelines
