#include "pipelines/train/trainer.h"

#include <chrono>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/interrupt.h"

namespace fovea::pipelines {
namespace {

constexpr int64_t kBadStepsInARow = 5;

double now_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What two runs share when one may go on with the other's checkpoint.
std::string settings_of(const TrainRequest& request) {
  return Json({{"config", Json::parse(request.config.settings)},
               {"dtype", at::toString(request.dtype)},
               {"init", !request.init.empty()}})
      .dump();
}

fs::path training_file(const TrainRequest& request, const char* end) {
  return request.out / "training" / (std::string(request.config.stage_name()) + end);
}

}  // namespace

Trainer::Trainer(const TrainRequest& request, ProcessGroup& group, Progress& progress,
                 Report& report)
    : request_(request),
      group_(group),
      progress_(progress),
      report_(report),
      checkpoint_(training_file(request, ".safetensors"), settings_of(request)),
      log_(training_file(request, ".log.jsonl")) {
  group_.require_equal("the configuration", settings_of(request));
  check_init();
  check_output();
  lock_output();
  // Before anything is written: a run that cannot go on leaves the folder as it is.
  std::optional<TrainingState> state;
  if (group_.rank() == 0 && request_.resume) state = checkpoint_.load();
  make_task();
  optimizer_ = std::make_unique<Optimizer>(task_->parameters(), request_.config.optimizer);
  restore(state);
}

void Trainer::check_init() const {
  if (request_.init.empty()) return;
  require(request_.config.model.empty(), ErrorCode::usage, request_.config.where,
          "key 'model': expected none with --init, whose folder says it");
  std::error_code ignored;
  require(!fs::equivalent(request_.init, request_.out, ignored), ErrorCode::usage,
          request_.out.string(), "expected another folder than the one that training starts from");
}

// Nothing that a run has made is lost without --resume or --overwrite.
void Trainer::check_output() const {
  if (group_.rank() != 0 || request_.resume || request_.overwrite) return;
  const char* component = request_.config.stage == TrainStage::autoencoder ? "vae" : "transformer";
  for (const fs::path& path : {checkpoint_.path(), request_.out / component / "config.json"}) {
    require(!fs::exists(path), ErrorCode::conflict, path.string(),
            "exists: --resume goes on with a run, --overwrite replaces it");
  }
}

// Once the folder is there: a run that cannot begin makes none.
void Trainer::lock_output() {
  const fs::path folder = request_.out / "training";
  if (group_.rank() == 0 && !lock_ && fs::is_directory(folder)) lock_.emplace(folder);
}

// Process 0 first: it writes files of the folder that the others read.
void Trainer::make_task() {
  const TaskSetup setup{.out = request_.out,
                        .init = request_.init,
                        .dtype = request_.dtype,
                        .device = request_.device,
                        .rank = group_.rank(),
                        .world_size = group_.world_size()};
  if (group_.rank() == 0) {
    task_ = make_training_task(request_.config, setup, report_);
    std::error_code error;
    fs::create_directories(request_.out / "training", error);
    if (error) throw_errno(error.value(), request_.out / "training", "create");
    lock_output();
  }
  group_.barrier();
  if (group_.rank() != 0) task_ = make_training_task(request_.config, setup, report_);
  report_.facts["parameters"] = task_->parameters().numel();
}

void Trainer::restore(const std::optional<TrainingState>& state) {
  if (state) {
    optimizer_->restore(state->tensors, checkpoint_.path().string());
    done_ = state->step;
    skipped_ = state->skipped;
  }
  if (group_.rank() == 0) {
    if (!state) checkpoint_.remove();
    remove_stale_temporaries(request_.out);
    log_.begin(done_);
  }
  double numbers[] = {static_cast<double>(done_), static_cast<double>(skipped_)};
  group_.agree_max(numbers);
  done_ = static_cast<int64_t>(numbers[0]);
  skipped_ = static_cast<int64_t>(numbers[1]);
  for (at::Tensor* row : optimizer_->rows()) group_.broadcast(*row, 0);
  task_->parameters().publish();
  report_.facts["resumed_from_step"] = done_;
}

void Trainer::run() {
  try {
    train();
  } catch (const Error& error) {
    if (!is_interruption(error.code())) throw;
    const UninterruptedScope saving;
    save_checkpoint();
    throw;
  }
  finish();
}

void Trainer::train() {
  if (done_ == request_.config.steps) return;
  task_->fill(done_, progress_);
  progress_.begin("train", request_.config.steps);
  started_ = now_seconds();
  started_at_ = done_;
  while (done_ < request_.config.steps) {
    stop_if_asked();
    step();
    if (is_log_step() || request_.device.is_cpu()) read_records();
    if (is_log_step()) progress_.update(done_);
    if (done_ % request_.config.checkpoint_every == 0 && done_ < request_.config.steps) {
      save_checkpoint();
    }
  }
  progress_.end();
}

// All processes stop at the same step: one that stopped alone would leave the others waiting.
void Trainer::stop_if_asked() {
  if (group_.world_size() > 1) {
    double signal = interrupt_requested();
    group_.agree_max({&signal, 1});
    if (signal > 0 && interrupt_requested() == 0) request_interrupt(static_cast<int>(signal));
  }
  throw_if_interrupted();
}

void Trainer::step() {
  std::optional<UninterruptedScope> together;
  if (group_.world_size() > 1) together.emplace();
  const int64_t parts = request_.config.micro_batches;
  task_->prepare(done_);
  TrainableParameters& parameters = task_->parameters();
  parameters.clear_gradients();
  at::Tensor loss = at::zeros({}, at::TensorOptions(at::kFloat).device(request_.device));
  for (int64_t part = 0; part < parts; ++part) {
    const at::Tensor share = task_->loss(part, parts) / static_cast<double>(parts);
    share.backward();
    parameters.collect_gradients();
    loss += share.detach().to(at::kFloat);
  }
  group_.all_reduce_mean(parameters.gradient());
  group_.all_reduce_mean(loss);
  const double rate = request_.config.optimizer.rate(done_, request_.config.steps);
  const at::Tensor outcome = optimizer_->step(done_, rate, loss);
  records_.push_back(at::cat({loss.view(1), outcome}));
  ++done_;
}

// Brings the records of the steps since the last call to the host: one wait for many steps.
void Trainer::read_records() {
  group_.wait_device();
  const at::Tensor records = at::stack(records_).cpu();
  records_.clear();
  for (int64_t i = 0; i < records.size(0); ++i) {
    const float* record = records[i].const_data_ptr<float>();
    if (record[2] != 0) {
      ++skipped_;
      const int64_t step = done_ - records.size(0) + i + 1;
      log({{"step", step}, {"event", "skipped: loss or gradients are not finite"}});
      require(++bad_in_a_row_ < kBadStepsInARow, ErrorCode::non_finite, request_.config.where,
              "loss or gradients are not finite in ", kBadStepsInARow,
              " steps in a row, up to step ", step);
      continue;
    }
    bad_in_a_row_ = 0;
    sums_.add(record[0], record[1]);
  }
  if (is_log_step()) log_steps();
}

bool Trainer::is_log_step() const {
  return done_ % request_.config.log_every == 0 || done_ == request_.config.steps;
}

// Means over the steps since the last line; null when all of them were skipped.
void Trainer::log_steps() {
  const double seconds = now_seconds() - started_;
  const auto count = static_cast<double>(sums_.steps);
  if (sums_.steps > 0) last_loss_ = sums_.loss / count;
  log({{"step", done_},
       {"loss", sums_.loss / count},
       {"gradient_norm", sums_.gradient_norm / count},
       {"learning_rate", request_.config.optimizer.rate(done_ - 1, request_.config.steps)},
       {"skipped", skipped_},
       {"seconds", seconds},
       {"steps_per_second", static_cast<double>(done_ - started_at_) / seconds}});
  sums_ = {};
}

void Trainer::save_checkpoint() {
  group_.wait_device();
  if (!records_.empty()) read_records();
  // Weights that the last steps could do nothing with may be what made the loss what it is.
  if (group_.rank() != 0 || bad_in_a_row_ > 0) return;
  checkpoint_.save({.step = done_, .skipped = skipped_, .tensors = optimizer_->state()});
}

// The model is the average of the weights; the checkpoint stays until it is written.
void Trainer::finish() {
  save_checkpoint();
  optimizer_->swap_average();
  if (group_.rank() == 0) {
    progress_.begin("save", 1);
    task_->save();
    progress_.end();
    if (request_.config.evaluation_clips > 0) {
      progress_.begin("evaluate", 1);
      const Json result = task_->evaluate();
      progress_.end();
      report_.facts["evaluation"] = result;
      log({{"step", done_}, {"evaluation", result}});
    }
    report_.facts["steps"] = done_;
    report_.facts["skipped"] = skipped_;
    report_.facts["loss"] = last_loss_;
  }
  optimizer_->swap_average();
  group_.barrier();
}

void Trainer::log(const Json& line) {
  if (group_.rank() != 0) return;
  log_.write(line);
  progress_.event("log", line);
}

}  // namespace fovea::pipelines
