#pragma once

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace fovea::apps {

/// What a subcommand does once the command line is read; returns the exit code.
using Action = std::function<int()>;

// Each adds its subcommand and options to `app` and sets `action` when the user chose it.
void add_bench(CLI::App& app, Action& action);
void add_compare(CLI::App& app, Action& action);
void add_generate(CLI::App& app, Action& action);
void add_inspect(CLI::App& app, Action& action);
void add_op(CLI::App& app, Action& action);
void add_plan(CLI::App& app, Action& action);
void add_train(CLI::App& app, Action& action);

}  // namespace fovea::apps
