#include "apps/fovea/video_run.h"

#include <ATen/ATen.h>

#include "apps/fovea/run_report.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "core/device.h"
#include "core/version.h"

namespace fovea::apps {
namespace {

ProgressStyle style(const GenerateOptions& options) {
  if (options.json) return ProgressStyle::json;
  return options.quiet ? ProgressStyle::silent : ProgressStyle::bar;
}

}  // namespace

VideoRun::VideoRun(const GenerateOptions& options, std::vector<Job>& jobs)
    : options_(options),
      attention_(attention_of(options)),
      fps_(parse_fps(options.fps)),
      device_(parse_device(options.device)),
      report_(options.strict),
      progress_(make_progress(style(options))) {
  set_num_threads(options_.threads);
  load_latents(jobs);
  pipeline_.emplace(options_.model, pipeline_options(), report_, *progress_);
  fingerprint_ = pipeline_->folder().fingerprint();
  const PlanRecipe attention = for_model(attention_, fingerprint_);
  pipeline_->set_attention(attention.planner, attention.options);
  for (const Job& job : jobs) pipeline_->check(job.request);
}

pipelines::PipelineOptions VideoRun::pipeline_options() const {
  const at::ScalarType dtype = parse_dtype(options_.dtype);
  return {.dtype = dtype,
          .device = device_,
          .scheduler = {.name = options_.scheduler, .flow_shift = options_.flow_shift},
          .vae_tiling = options_.vae_tiling,
          .executor = options_.executor};
}

void VideoRun::load_latents(std::vector<Job>& jobs) {
  if (options_.latents.empty()) return;
  const TensorMap tensors = load_tensors(options_.latents);
  const auto found = tensors.find("latents");
  require(found != tensors.end(), ErrorCode::bad_data, options_.latents,
          "holds no tensor 'latents'");
  require(found->second.scalar_type() == at::kFloat, ErrorCode::bad_data, options_.latents,
          "tensor 'latents': expected fp32, got ", dtype_name(found->second.scalar_type()));
  jobs.front().request.latents = found->second;
}

void VideoRun::start_report(const std::vector<Job>& jobs) {
  report_start(report_, options_, jobs, *pipeline_, device_);
}

void VideoRun::prepare(const std::vector<Job>& jobs) {
  std::vector<pipelines::VideoRequest> requests;
  for (const Job& job : jobs) requests.push_back(job.request);
  pipeline_->prepare(requests);
}

void VideoRun::end_report() { report_end(report_, *pipeline_, *progress_, device_); }

Json VideoRun::settings(const Job& job, const PlanRecipe& attention) const {
  Json out = job.request.settings();
  out["fps"] = fps_.text();
  out["scheduler"] = pipeline_->scheduler().describe();
  out["dtype"] = options_.dtype;
  out["device"] = device_.is_cuda() ? "cuda" : "cpu";
  out["vae_tiling"] = options_.vae_tiling;
  out["attention"] = attention.planner;
  out["attention_options"] = attention.options;
  out["model"] = fs::path(options_.model).lexically_normal().filename().string();
  out["model_fingerprint"] = fingerprint_;
  if (!options_.latents.empty()) out["latents_sha256"] = sha256_file(options_.latents);
  out["fovea"] = kVersion;
  return out;
}

VideoOptions VideoRun::video_options(const Job& job, const PlanRecipe& attention) const {
  return {.path = job.out,
          .width = static_cast<int>(job.request.width),
          .height = static_cast<int>(job.request.height),
          .frames = job.request.num_frames,
          .fps = fps_,
          .comment = json_text(settings(job, attention)),
          .overwrite = options_.overwrite};
}

void VideoRun::decode(const at::Tensor& latents,
                      const std::function<void(std::span<const uint8_t>)>& sink) {
  pipeline_->decode(latents, [&](const at::Tensor& frames) {
    for (int64_t i = 0; i < frames.size(0); ++i) {
      sink({frames[i].data_ptr<uint8_t>(), static_cast<size_t>(frames[i].numel())});
    }
  });
}

void write_text(const fs::path& path, const std::string& text, bool overwrite) {
  AtomicFile file(path, overwrite);
  file.write(text);
  file.commit();
}

std::string json_text(const Json& json, int indent) {
  return json.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace fovea::apps
