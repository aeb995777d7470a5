#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/op_command.h"
#include "core/check.h"
#include "core/device.h"

namespace fovea::apps {
namespace {

struct OpOptions {
  OpRun run;
  std::string in, out;
  std::string device = "cpu";
  bool list = false;
  bool json = false;
};

int run(OpOptions& options) {
  if (options.list) {
    const std::string text = options.json ? list_ops_json().dump(2) + "\n" : list_ops();
    std::fputs(text.c_str(), stdout);
    return 0;
  }
  require(!options.run.name.empty(), ErrorCode::usage, "op",
          "expected an operator's name or --list");
  require(!options.in.empty(), ErrorCode::usage, "--in",
          "expected a safetensors file with the inputs");
  require(!options.out.empty(), ErrorCode::usage, "--out",
          "expected a safetensors file for the output");
  options.run.in = options.in;
  options.run.out = options.out;
  options.run.device = parse_device(options.device);
  run_op(options.run);
  return 0;
}

}  // namespace

void add_op(CLI::App& app, Action& action) {
  auto options = std::make_shared<OpOptions>();
  CLI::App* command = app.add_subcommand("op", "Run one operator on tensors in safetensors files");
  command->footer(
      "Example:\n  fovea op --list\n"
      "  fovea op rms_norm --in tensors.safetensors --out result.safetensors --set eps=1e-6");
  command->add_option("name", options->run.name, "Operator, see --list");
  command->add_option("--in", options->in, "Inputs by name");
  command->add_option("--out", options->out, "Where the output goes");
  command->add_option("--set", options->run.settings, "Option as KEY=VALUE; may be repeated");
  command->add_option("--device", options->device, "cpu, cuda or cuda:N")->capture_default_str();
  command->add_flag("--list", options->list,
                    "Print the operators with inputs, outputs and options");
  command->add_flag("--json", options->json, "With --list: as JSON");
  command->add_flag("--overwrite", options->run.overwrite, "Replace an output that exists");
  command->callback([options, &action] { action = [options] { return run(*options); }; });
}

}  // namespace fovea::apps
