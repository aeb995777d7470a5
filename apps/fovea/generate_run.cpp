#include "apps/fovea/generate_run.h"

#include <algorithm>
#include <cstdio>

#include <ATen/ATen.h>

#include "apps/fovea/prompt_list.h"
#include "apps/fovea/run_report.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "core/device.h"
#include "core/interrupt.h"
#include "core/media/video_reader.h"
#include "core/media/video_writer.h"
#include "core/version.h"
#include "pipelines/resume_state.h"
#include "pipelines/text_to_video.h"

namespace fovea::apps {
namespace {

constexpr double kSecondsBetweenSaves = 5;

// One run of the command: what all its videos share.
class GenerateRun {
 public:
  GenerateRun(const GenerateOptions& options, std::vector<Job> jobs)
      : options_(options),
        jobs_(std::move(jobs)),
        fps_(parse_fps(options.fps)),
        device_(parse_device(options.device)),
        report_(options.strict),
        progress_(make_progress(style(options))) {
    if (!options_.report.empty()) check_output_path(options_.report, options_.overwrite);
    if (!options_.save_latents.empty())
      check_output_path(options_.save_latents, options_.overwrite);
    set_num_threads(options_.threads);
    load_latents_option();
    pipeline_.emplace(options_.model, pipeline_options(), report_, *progress_);
    for (const Job& job : jobs_) pipeline_->check(job.request);
  }

  void run() {
    report_start(report_, options_, jobs_, *pipeline_, device_);
    fingerprint_ = report_.facts["model"]["fingerprint"].get<std::string>();
    std::erase_if(jobs_, [&](const Job& job) { return skip_finished(job); });
    if (!jobs_.empty()) {
      std::vector<pipelines::VideoRequest> requests;
      for (const Job& job : jobs_) requests.push_back(job.request);
      pipeline_->prepare(requests);
    }
    for (const Job& job : jobs_) make_video(job);
    report_end(report_, *pipeline_, *progress_, device_);
    if (!options_.report.empty()) {
      AtomicFile file(options_.report, options_.overwrite);
      file.write(report_.json().dump(2, ' ', false, Json::error_handler_t::replace) + "\n");
      file.commit();
    }
  }

 private:
  static ProgressStyle style(const GenerateOptions& options) {
    if (options.json) return ProgressStyle::json;
    return options.quiet ? ProgressStyle::silent : ProgressStyle::bar;
  }

  pipelines::PipelineOptions pipeline_options() const {
    const at::ScalarType dtype = parse_dtype(options_.dtype);
    return {.dtype = dtype,
            .device = device_,
            .scheduler = {.name = options_.scheduler, .flow_shift = options_.flow_shift},
            .vae_tiling = options_.vae_tiling,
            .attention = options_.attention,
            .attention_options = parse_planner_options(options_.attention_options, "--attn")};
  }

  void load_latents_option() {
    if (options_.latents.empty()) return;
    const TensorMap tensors = load_tensors(options_.latents);
    const auto found = tensors.find("latents");
    require(found != tensors.end(), ErrorCode::bad_data, options_.latents,
            "holds no tensor 'latents'");
    require(found->second.scalar_type() == at::kFloat, ErrorCode::bad_data, options_.latents,
            "tensor 'latents': expected fp32, got ", dtype_name(found->second.scalar_type()));
    jobs_.front().request.latents = found->second;
  }

  // The file that tells what an output holds: itself, or frame 0 of a PNG sequence.
  static fs::path first_file(const fs::path& out) {
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

  // Everything that decides the file; kept inside it and compared by --resume.
  Json settings(const Job& job) const {
    Json out = job.request.settings();
    out["fps"] = fps_.text();
    out["scheduler"] = pipeline_->scheduler().describe();
    out["dtype"] = options_.dtype;
    out["device"] = device_.is_cuda() ? "cuda" : "cpu";
    out["vae_tiling"] = options_.vae_tiling;
    out["attention"] = options_.attention;
    out["attention_options"] = parse_planner_options(options_.attention_options, "--attn");
    out["model"] = fs::path(options_.model).lexically_normal().filename().string();
    out["model_fingerprint"] = fingerprint_;
    if (!options_.latents.empty()) out["latents_sha256"] = sha256_file(options_.latents);
    out["fovea"] = kVersion;
    return out;
  }

  VideoOptions video_options(const Job& job) const {
    return {.path = job.out,
            .width = static_cast<int>(job.request.width),
            .height = static_cast<int>(job.request.height),
            .frames = job.request.num_frames,
            .fps = fps_,
            .comment = settings(job).dump(-1, ' ', false, Json::error_handler_t::replace),
            .overwrite = options_.overwrite};
  }

  // With --resume a finished video of the same settings is left as it is; otherwise the output must
  // be free, or --overwrite given. Either way this is known before anything is loaded.
  bool skip_finished(const Job& job) {
    const VideoOptions video = video_options(job);
    const fs::path first = first_file(job.out);
    std::error_code ignored;
    if (options_.resume && fs::is_regular_file(first, ignored)) {
      if (read_comment(first) == video.comment) {
        progress_->event("skipped", {{"path", job.out.string()}});
        report_.facts["videos"].push_back({{"path", job.out.string()}, {"skipped", true}});
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
        const bool last = now.step == pipeline_->scheduler().num_steps();
        state->save(now, last ? 0 : kSecondsBetweenSaves);
      };
    }
    try {
      return pipeline_->denoise(job.request, hooks);
    } catch (const Error&) {
      const UninterruptedScope saving;
      if (reached.step > 0) state->save(reached, 0);
      throw;
    }
  }

  void make_video(const Job& job) {
    std::optional<pipelines::ResumeState> state;
    if (options_.resume) state.emplace(job.out, settings(job).dump());
    int64_t resumed_from = 0;
    const at::Tensor latents = denoise(job, state ? &*state : nullptr, resumed_from);
    if (!options_.save_latents.empty()) {
      save_tensors(options_.save_latents, {{"latents", latents}}, options_.overwrite);
    }
    const auto writer = make_video_writer(video_options(job));
    pipeline_->decode(latents, [&](const at::Tensor& frames) {
      for (int64_t i = 0; i < frames.size(0); ++i) {
        writer->write({frames[i].data_ptr<uint8_t>(), static_cast<size_t>(frames[i].numel())});
      }
    });
    const VideoResult result = writer->finish();
    if (state) state->remove();
    describe_output(job, result, resumed_from);
  }

  void describe_output(const Job& job, const VideoResult& result, int64_t resumed_from) {
    Json video;
    video["path"] = job.out.string();
    video["settings"] = settings(job);
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
    report_.facts["videos"].push_back(video);
    progress_->event("output", {{"path", job.out.string()},
                                {"bytes", result.bytes},
                                {"num_frames", result.frames},
                                {"notes", result.notes}});
    if (!options_.json) {
      for (const std::string& note : result.notes) {
        std::fprintf(stderr, "note: %s: %s\n", printable(job.out.string()).c_str(), note.c_str());
      }
      std::printf("%s: %s\n", job.out.c_str(),
                  str(result.frames, " frames, ", job.request.width, "x", job.request.height, ", ",
                      result.fps.text(), " fps, ", result.bytes, " bytes")
                      .c_str());
    }
  }

  const GenerateOptions& options_;
  std::vector<Job> jobs_;
  Rational fps_;
  at::Device device_;
  Report report_;
  std::unique_ptr<Progress> progress_;
  std::optional<pipelines::VideoPipeline> pipeline_;
  std::string fingerprint_;
};

}  // namespace

int run_generate(const GenerateOptions& options) {
  GenerateRun(options, make_jobs(options)).run();
  return 0;
}

}  // namespace fovea::apps
