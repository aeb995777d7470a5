#include "apps/fovea/run_report.h"

#include <cstdio>
#include <set>
#include <utility>

#include <ATen/Parallel.h>

#include "core/device.h"
#include "core/version.h"

namespace fovea::apps {
namespace {

constexpr uint64_t kMaxCommandBytes = 4u << 20;

}  // namespace

Json command_words() {
  // Not a regular file of known size, so read_file does not apply.
  std::FILE* file = std::fopen("/proc/self/cmdline", "rb");
  Json words = Json::array();
  if (file == nullptr) return words;
  std::string word;
  uint64_t total = 0;
  for (int c = 0; (c = std::fgetc(file)) != EOF && ++total < kMaxCommandBytes;) {
    if (c != 0) {
      word += static_cast<char>(c);
    } else {
      words.push_back(std::exchange(word, {}));
    }
  }
  std::fclose(file);
  return words;
}

void report_start(Report& report, const GenerateOptions& options, const std::vector<Job>& jobs,
                  const pipelines::VideoPipeline& pipeline, at::Device device) {
  Json& facts = report.facts;
  facts["fovea"] = kVersion;
  facts["command"] = command_words();
  facts["model"] = {{"folder", options.model}, {"fingerprint", pipeline.folder().fingerprint()}};
  facts["device"] = device_name(device);
  facts["dtype"] = options.dtype;
  facts["threads"] = at::get_num_threads();
  facts["scheduler"] = pipeline.scheduler().describe();
  std::set<std::string> inputs;
  for (const Job& job : jobs) inputs.insert(job.request.image.string());
  inputs.insert(options.prompts);
  inputs.insert(options.latents);
  inputs.erase("");
  facts["inputs"] = Json::array();
  for (const std::string& input : inputs) {
    facts["inputs"].push_back({{"path", input}, {"sha256", sha256_file(input)}});
  }
  facts["videos"] = Json::array();
}

void report_end(Report& report, const pipelines::VideoPipeline& pipeline, const Progress& progress,
                at::Device device) {
  Json attention = Json::object();
  for (const auto& [kind, calls] : pipeline.attention_counts()) attention[kind] = calls;
  report.facts["attention"] = attention;
  report.facts["peak_memory"] = {{"host_bytes", peak_host_bytes()},
                                 {"device_bytes", peak_device_bytes(device)}};
  report.facts["seconds"] = progress.seconds();
}

}  // namespace fovea::apps
