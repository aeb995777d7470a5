#pragma once

#include <string>

#include "apps/fovea/generate_options.h"
#include "apps/fovea/prompt_list.h"
#include "core/progress.h"
#include "core/report.h"
#include "pipelines/text_to_video.h"

namespace fovea::apps {

/// The words of this process's command line.
Json command_words();

/// Facts that are known before the first video: version, command, model, device, inputs' hashes.
void report_start(Report& report, const GenerateOptions& options, const std::vector<Job>& jobs,
                  const pipelines::VideoPipeline& pipeline, at::Device device);

/// Facts that are known at the end: attention kernels per role, peak memory, seconds per stage.
void report_end(Report& report, const pipelines::VideoPipeline& pipeline, const Progress& progress,
                at::Device device);

}  // namespace fovea::apps
