#include <cstdio>
#include <memory>

#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/train_options.h"
#include "apps/fovea/train_run.h"

namespace fovea::apps {
namespace {

constexpr const char* kExample =
    "Example, a small model of the rendered world from nothing:\n"
    "  fovea train --config assets/training/mini-autoencoder.json --out mini --gpus 2 --dtype "
    "bf16\n"
    "  fovea train --config assets/training/mini-transformer.json --out mini --gpus 2 --dtype "
    "bf16\n"
    "Over machines: start one process a GPU with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and\n"
    "MASTER_PORT set (torchrun --no-python does), and --device cuda.";

}  // namespace

void add_train(CLI::App& app, Action& action) {
  // Shared: the options must live until the action runs.
  auto options = std::make_shared<TrainOptions>();
  CLI::App* command = app.add_subcommand("train", "Train or fine-tune a model folder");
  command->footer(kExample);
  command->option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  command->add_option("--config", options->config, "JSON file: stage, data, model, optimizer")
      ->required();
  command
      ->add_option("--out", options->out,
                   "Model folder to write; OUT/training keeps checkpoint and log")
      ->required();
  command->add_option("--init", options->init, "Model folder whose weights training starts from");
  command->add_option("--device", options->device,
                      "cpu, cuda or cuda:N; default: cuda with --gpus, else cpu");
  command->add_option("--gpus", options->gpus, "Train on so many GPUs of this machine")
      ->check(CLI::Range(1, 64));
  command->add_option("--dtype", options->dtype, "fp32, bf16 with fp32 master weights, or fp64")
      ->capture_default_str();
  command
      ->add_option("--threads", options->threads,
                   "CPU threads; 0 = all cores, shared by a machine's processes")
      ->capture_default_str();
  command->add_option("--report", options->report, "Write a JSON report of the run");
  command->add_flag("--resume", options->resume, "Go on from the checkpoint, if there is one");
  command->add_flag("--overwrite", options->overwrite, "Start anew and replace what OUT holds");
  command->add_flag("--strict", options->strict, "Warnings and fallbacks are errors");
  command->add_flag("--json", options->json, "Progress as JSON lines on standard output");
  command->add_flag("--quiet", options->quiet, "No progress");
  command->callback([options, &action] { action = [options] { return run_train(*options); }; });
}

}  // namespace fovea::apps
