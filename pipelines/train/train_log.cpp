#include "pipelines/train/train_log.h"

#include <fstream>
#include <string>

namespace fovea::pipelines {
namespace {

// Whether a line is a whole one about a step up to `step`.
bool is_kept(const std::string& line, int64_t step) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.contains("evaluation")) return false;
  const auto found = json.find("step");
  return found != json.end() && found->is_number_integer() && found->get<int64_t>() <= step;
}

}  // namespace

void TrainLog::begin(int64_t step) const {
  std::string kept;
  std::ifstream old(path_);
  for (std::string line; std::getline(old, line);) {
    if (is_kept(line, step)) kept += line + "\n";
  }
  AtomicFile file(path_, /*overwrite=*/true);
  file.write(kept);
  file.commit();
}

void TrainLog::write(const Json& line) const {
  std::ofstream(path_, std::ios::app) << line.dump() << '\n';
}

}  // namespace fovea::pipelines
