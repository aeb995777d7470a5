#include "apps/fovea/train_run.h"

#include <cmath>
#include <cstdio>

#include <ATen/Parallel.h>

#include "apps/fovea/launch.h"
#include "apps/fovea/run_report.h"
#include "apps/fovea/signals.h"
#include "core/check.h"
#include "core/device.h"
#include "core/guard.h"
#include "core/interrupt.h"
#include "core/process_group.h"
#include "core/version.h"
#include "pipelines/train/trainer.h"

namespace fovea::apps {
namespace {

// Seconds that a stopped run has for the step it is in and for its checkpoint.
constexpr double kCheckpointSeconds = 25;

std::unique_ptr<Progress> make_train_progress(const TrainOptions& options, int rank) {
  if (rank != 0 || options.quiet) return make_progress(ProgressStyle::silent);
  return make_progress(options.json ? ProgressStyle::json : ProgressStyle::bar);
}

std::string device_text(const TrainOptions& options) {
  if (!options.device.empty()) return options.device;
  return options.gpus > 0 ? "cuda" : "cpu";
}

// With several processes of this machine each takes the GPU of its own number.
at::Device device_of(const TrainOptions& options, const ProcessPlace& place) {
  const std::string device = device_text(options);
  return parse_device(device == "cuda" && place.world_size > 1 ? str("cuda:", place.local_rank)
                                                               : device);
}

void write_report(const TrainOptions& options, Report& report, const Progress& progress,
                  const pipelines::TrainRequest& request) {
  report.facts["seconds"] = progress.seconds();
  report.facts["peak_memory"] = {{"host_bytes", peak_host_bytes()},
                                 {"device_bytes", peak_device_bytes(request.device)}};
  if (options.report.empty()) return;
  AtomicFile file(options.report, options.overwrite);
  file.write(report.json().dump(2) + "\n");
  file.commit();
}

void run_trainer(const pipelines::TrainRequest& request, ProcessGroup& group, Progress& progress,
                 Report& report) {
  try {
    pipelines::Trainer trainer(request, group, progress, report);
    trainer.run();
  } catch (const Error& error) {
    // Asked to stop like the others: that one of them was quicker is no failure.
    if (error.code() == ErrorCode::device) throw_if_interrupted();
    throw;
  }
}

int train(const TrainOptions& options) {
  const ProcessPlace place = read_process_place();
  pipelines::TrainRequest request{.config = pipelines::TrainConfig::read(options.config),
                                  .out = options.out,
                                  .init = options.init,
                                  .dtype = parse_dtype(options.dtype),
                                  .resume = options.resume,
                                  .overwrite = options.overwrite};
  require(request.dtype != at::kHalf, ErrorCode::usage, "--dtype",
          "fp16 needs loss scaling, which is not there: use bf16");
  request.device = device_of(options, place);
  if (!options.report.empty()) check_output_path(options.report, options.overwrite);
  set_num_threads(options.threads, place.local_world_size);

  set_stop_grace(kCheckpointSeconds);

  Report report(options.strict);
  report.facts["fovea"] = kVersion;
  report.facts["command"] = command_words();
  report.facts["device"] = device_name(request.device);
  report.facts["dtype"] = options.dtype;
  report.facts["threads"] = at::get_num_threads();
  report.facts["processes"] = place.world_size;
  const std::unique_ptr<Progress> progress = make_train_progress(options, place.rank);
  const auto group = ProcessGroup::make(place, request.device);
  try {
    guarded("train", [&] { run_trainer(request, *group, *progress, report); });
  } catch (const Error& error) {
    // All of them are asked to stop: one says so.
    if (place.rank != 0 && is_interruption(error.code())) return error.exit_code();
    throw;
  }
  if (place.rank != 0) return 0;
  write_report(options, report, *progress, request);
  if (!options.json) {
    const double loss = report.facts["loss"];
    const std::string shown = std::isnan(loss) ? "" : str(", loss ", loss);
    std::printf("%s: %s, %lld steps%s\n", options.out.c_str(), request.config.stage_name(),
                static_cast<long long>(request.config.steps), shown.c_str());
  }
  return 0;
}

}  // namespace

int run_train(const TrainOptions& options) {
  if (options.gpus > 0 && !is_launched()) {
    require(device_text(options) == "cuda", ErrorCode::usage, "--gpus",
            "expected --device cuda, got ", options.device);
    return launch_processes(options.gpus, own_command(), {.grace_seconds = kCheckpointSeconds});
  }
  return train(options);
}

}  // namespace fovea::apps
