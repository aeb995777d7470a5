#pragma once

#include <string>
#include <vector>

#include <ATen/core/function_schema.h>
#include <ATen/core/ivalue.h>

#include "core/attention/functional.h"

namespace fovea::apps {

/// The arguments of one call of an operator, by the names of its schema.
class Arguments {
 public:
  Arguments(const c10::FunctionSchema& schema, std::vector<c10::IValue> values)
      : schema_(schema), values_(std::move(values)) {}

  const c10::IValue& value(const char* name) const;
  at::Tensor tensor(const char* name) const;  ///< undefined where it was left out
  std::string text(const char* name) const { return value(name).toStringRef(); }
  int64_t integer(const char* name) const { return value(name).toInt(); }
  std::vector<int64_t> integers(const char* name) const { return value(name).toIntVector(); }
  std::vector<bool> flags(const char* name) const;
  bool flag(const char* name) const { return value(name).toBool(); }
  std::optional<double> number(const char* name) const;

 private:
  const c10::FunctionSchema& schema_;
  std::vector<c10::IValue> values_;
};

/// What an operator's arguments ask for.
struct AttentionProblem {
  AttentionPlan plan;
  AttentionCall call;
  std::string executor;
};

/// Each throws Error bad_data or usage for arguments that make no sense.
AttentionProblem block_attention_problem(const Arguments& arguments);
AttentionProblem neighborhood_problem(const Arguments& arguments);
AttentionProblem planned_problem(const Arguments& arguments);

/// The plan that a planner makes for the operators `plan` and `plan_text`, and its call.
AttentionProblem planner_problem(const Arguments& arguments);

}  // namespace fovea::apps
