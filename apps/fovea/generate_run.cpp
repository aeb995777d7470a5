#include "apps/fovea/generate_run.h"

#include <algorithm>
#include <cstdio>

#include <ATen/ATen.h>

#include "apps/fovea/video_run.h"
#include "core/check.h"
#include "core/interrupt.h"
#include "core/media/video_reader.h"
#include "pipelines/resume_state.h"

namespace fovea::apps {
namespace {

constexpr double kSecondsBetweenSaves = 5;

// The file that tells what an output holds: itself, or frame 0 of a PNG sequence.
fs::path first_file(const fs::path& out) {
  const std::string text = out.string();
  const size_t percent = text.find('%');
  if (percent == std::string::npos) return out;
  const size_t end = text.find('d', percent);
  if (end == std::string::npos || end - percent > 3) return out;
  const std::string digits = text.substr(percent + 1, end - percent - 1);
  const size_t width =
      digits.empty() ? 1 : static_cast<size_t>(std::max(1, std::atoi(digits.c_str())));
  return text.substr(0, percent) + std::string(width, '0') + text.substr(end + 1);
}

void check_outputs(const GenerateOptions& options) {
  if (!options.report.empty()) check_output_path(options.report, options.overwrite);
  if (!options.save_latents.empty()) check_output_path(options.save_latents, options.overwrite);
}

// One run of the command: what all its videos share.
class GenerateRun {
 public:
  GenerateRun(const GenerateOptions& options, std::vector<Job> jobs)
      : options_(options), jobs_(std::move(jobs)), run_(options, jobs_) {}

  void run() {
    run_.start_report(jobs_);
    std::erase_if(jobs_, [&](const Job& job) { return skip_finished(job); });
    if (!jobs_.empty()) run_.prepare(jobs_);
    for (const Job& job : jobs_) make_video(job);
    run_.end_report();
    if (options_.report.empty()) return;
    write_text(options_.report, json_text(run_.report().json(), 2) + "\n", options_.overwrite);
  }

 private:
  // With --resume a finished video of the same settings is left as it is; otherwise the output must
  // be free, or --overwrite given. Either way this is known before anything is loaded.
  bool skip_finished(const Job& job) {
    const VideoOptions video = run_.video_options(job, run_.attention());
    const fs::path first = first_file(job.out);
    std::error_code ignored;
    if (options_.resume && fs::is_regular_file(first, ignored)) {
      if (read_comment(first) == video.comment) {
        run_.progress().event("skipped", {{"path", job.out.string()}});
        run_.report().facts["videos"].push_back({{"path", job.out.string()}, {"skipped", true}});
        return true;
      }
      require(options_.overwrite, ErrorCode::conflict, job.out.string(),
              "exists and was made with other settings; --overwrite replaces it");
    }
    check_video_options(video);
    return false;
  }

  // Denoises; with --resume from the saved state, and so that the state outlives a failure.
  at::Tensor denoise(const Job& job, pipelines::ResumeState* state, int64_t& resumed_from) {
    pipelines::DenoiseHooks hooks;
    pipelines::DenoiseState reached;
    if (state != nullptr) {
      hooks.resume = state->load();
      if (hooks.resume) resumed_from = hooks.resume->step;
      hooks.on_step = [&](const pipelines::DenoiseState& now) {
        reached = now;
        const bool last = now.step == run_.pipeline().scheduler().num_steps();
        state->save(now, last ? 0 : kSecondsBetweenSaves);
      };
    }
    try {
      return run_.pipeline().denoise(job.request, hooks);
    } catch (const Error&) {
      const UninterruptedScope saving;
      if (reached.step > 0) state->save(reached, 0);
      throw;
    }
  }

  void make_video(const Job& job) {
    std::optional<pipelines::ResumeState> state;
    if (options_.resume) state.emplace(job.out, run_.settings(job, run_.attention()).dump());
    int64_t resumed_from = 0;
    const at::Tensor latents = denoise(job, state ? &*state : nullptr, resumed_from);
    if (!options_.save_latents.empty()) {
      save_tensors(options_.save_latents, {{"latents", latents}}, options_.overwrite);
    }
    const auto writer = make_video_writer(run_.video_options(job, run_.attention()));
    run_.decode(latents, [&](std::span<const uint8_t> frame) { writer->write(frame); });
    const VideoResult result = writer->finish();
    if (state) state->remove();
    describe_output(job, result, resumed_from);
  }

  void describe_output(const Job& job, const VideoResult& result, int64_t resumed_from) {
    Json video;
    video["path"] = job.out.string();
    video["settings"] = run_.settings(job, run_.attention());
    video["delivered"] = {{"num_frames", result.frames},  {"width", job.request.width},
                          {"height", job.request.height}, {"fps", result.fps.text()},
                          {"codec", result.codec},        {"pixel_format", result.pixel_format}};
    video["bytes"] = result.bytes;
    video["files"] = Json::array();
    for (const fs::path& file : result.files) {
      video["files"].push_back({{"path", file.string()}, {"sha256", sha256_file(file)}});
    }
    video["notes"] = result.notes;
    video["resumed_from_step"] = resumed_from;
    run_.report().facts["videos"].push_back(video);
    run_.progress().event("output", {{"path", job.out.string()},
                                     {"bytes", result.bytes},
                                     {"num_frames", result.frames},
                                     {"notes", result.notes}});
    if (options_.json) return;
    for (const std::string& note : result.notes) {
      std::fprintf(stderr, "note: %s: %s\n", printable(job.out.string()).c_str(), note.c_str());
    }
    std::printf("%s: %s\n", job.out.c_str(),
                str(result.frames, " frames, ", job.request.width, "x", job.request.height, ", ",
                    result.fps.text(), " fps, ", result.bytes, " bytes")
                    .c_str());
  }

  const GenerateOptions& options_;
  std::vector<Job> jobs_;
  VideoRun run_;
};

}  // namespace

int run_generate(const GenerateOptions& options) {
  std::vector<Job> jobs = make_jobs(options);
  check_outputs(options);
  GenerateRun(options, std::move(jobs)).run();
  return 0;
}

}  // namespace fovea::apps
