#pragma once

#include <string>
#include <vector>

#include "apps/fovea/generate_options.h"
#include "core/file.h"
#include "pipelines/video_request.h"

namespace fovea::apps {

/// One video of a run: what to make and where to put it.
struct Job {
  pipelines::VideoRequest request;
  fs::path out;
};

/// The jobs of a command line: one, or one for each line of --prompts.
///
/// A line is a JSON object with `prompt` and, where it differs from the command line,
/// `negative_prompt`, `image`, `height`, `width`, `num_frames`, `steps`, `guidance_scale`, `seed`
/// and `out` (a file name inside the folder --out; default: the line's number with four digits and
/// .mp4, or .png without video libraries). Empty lines are skipped.
///
/// throws  Error usage for options that exclude each other, bad_data naming the line and key,
///         resource for a prompt above 64 KiB
std::vector<Job> make_jobs(const GenerateOptions& options);

}  // namespace fovea::apps
