#pragma once

#include <string>
#include <vector>

#include "apps/fovea/video_run.h"

namespace fovea::apps {

/// A method of attention that is compared with others.
struct Method {
  PlanRecipe attention;
  std::string executor;  ///< by name; empty where none is given
  std::string label;     ///< as shown: "topk density=0.25"
  std::string name;      ///< as part of a file name: "topk-density-0.25"
};

/// Methods as a user lists them: `dense,radial,topk:density=0.25:block_q=64,window:tile=2,8,8`.
///
/// A method is a planner's name; options follow after ":" or ",". A value of numbers with commas is
/// a list. Values with "|" between stand for one method each: `topk:density=0.1|0.25`. The option
/// `executor` names what computes the method, as in `dense:executor=sdpa`.
///
/// texts   the values of one option, put one after the other
/// where   that option, for messages
/// throws  Error usage for an unknown planner, an option it does not take, an unknown executor, a
///         method listed twice
std::vector<Method> parse_methods(const std::vector<std::string>& texts, const std::string& where);

}  // namespace fovea::apps
