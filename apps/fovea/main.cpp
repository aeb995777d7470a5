// The `fovea` program: one binary, thin subcommands. Exit codes are those of `ErrorCode`.

#include <cstdio>
#include <cstdlib>
#include <exception>

#include <CLI/CLI.hpp>

#include "apps/fovea/commands.h"
#include "apps/fovea/signals.h"
#include "core/check.h"
#include "core/guard.h"
#include "core/process_group.h"
#include "core/version.h"

namespace {

// CLI11 throws for --help and --version too; those print to standard output and succeed.
int finish_parse(const CLI::App& app, const CLI::ParseError& error) {
  if (error.get_exit_code() == 0) return app.exit(error);
  throw fovea::Error(fovea::ErrorCode::usage, "command line", error.what());
}

int run(int argc, char** argv) {
  CLI::App app("fovea: video generation with attention that costs less", "fovea");
  app.set_version_flag("--version", std::string("fovea ") + fovea::kVersion);
  app.require_subcommand(1);
  app.footer("fovea SUBCOMMAND --help shows the options and an example.");
  fovea::apps::Action action;
  fovea::apps::add_bench(app, action);
  fovea::apps::add_compare(app, action);
  fovea::apps::add_generate(app, action);
  fovea::apps::add_inspect(app, action);
  fovea::apps::add_op(app, action);
  fovea::apps::add_plan(app, action);
  fovea::apps::add_train(app, action);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return finish_parse(app, error);
  }
  return action();
}

}  // namespace

int main(int argc, char** argv) {
  const fovea::apps::SignalWatch signals;
  int code = 0;
  try {
    try {
      code = run(argc, argv);
      fovea::apps::settle_exit_code(code);
    } catch (...) {
      fovea::rethrow_as_error("fovea");
    }
  } catch (const fovea::Error& error) {
    code = error.exit_code();
    fovea::apps::settle_exit_code(code);
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  std::fflush(nullptr);  // whatever ends the process now
  if (!fovea::process_group_abandoned()) return code;
  std::_Exit(code);
}
