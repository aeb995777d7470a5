#include "apps/fovea/prompt_list.h"

#include <limits>
#include <set>
#include <string_view>

#include "core/check.h"
#include "core/config.h"
#include "core/media/video_reader.h"
#include "models/text/tokenizer/prompt_clean.h"

namespace fovea::apps {
namespace {

constexpr uint64_t kMaxListBytes = 64u << 20;
constexpr int64_t kMaxInteger = std::numeric_limits<int64_t>::max();

pipelines::VideoRequest request_of(const GenerateOptions& options) {
  pipelines::VideoRequest out;
  out.prompt = options.prompt;
  out.negative_prompt = options.negative_prompt;
  out.image = options.image;
  out.height = options.height;
  out.width = options.width;
  out.num_frames = options.num_frames;
  out.num_steps = options.steps;
  out.guidance_scale = options.guidance_scale;
  out.seed = options.seed;
  return out;
}

// A file name from a prompt list: inside the output folder, and nowhere else.
void check_name(const std::string& name, const std::string& where) {
  const fs::path path(name);
  require(!name.empty() && path.filename() == path && name != "." && name != "..",
          ErrorCode::bad_data, where, "key 'out': expected a plain file name, got '", name, "'");
}

Job job_of_line(const std::string& text, int64_t number, const GenerateOptions& options) {
  const std::string where = str(options.prompts, ":", number);
  Config line(parse_json(text, where), where);
  Job job{request_of(options), {}};
  if (!line.has("prompt")) line.refuse("prompt", "expected a string");
  pipelines::VideoRequest& request = job.request;
  request.prompt = line.text("prompt", "");
  request.negative_prompt = line.text("negative_prompt", request.negative_prompt);
  request.image = line.text("image", request.image.string());
  request.height = line.integer("height", request.height, 1, kMaxInteger);
  request.width = line.integer("width", request.width, 1, kMaxInteger);
  request.num_frames = line.integer("num_frames", request.num_frames, 1, kMaxInteger);
  request.num_steps = line.integer("steps", request.num_steps, 1, kMaxInteger);
  request.guidance_scale = line.number("guidance_scale", request.guidance_scale);
  request.seed = static_cast<uint64_t>(
      line.integer("seed", static_cast<int64_t>(request.seed), 0, kMaxInteger));
  char name[16];
  std::snprintf(name, sizeof name, "%04d", static_cast<int>(number));
  const std::string out = line.text("out", str(name, has_video_formats() ? ".mp4" : "-%03d.png"));
  check_name(out, where);
  job.out = fs::path(options.out) / out;
  Report strict(/*strict=*/true);  // a key nobody knows in a prompt list is a typing error
  line.finish(strict);
  return job;
}

std::vector<Job> read_list(const GenerateOptions& options) {
  std::error_code ignored;
  require(fs::is_directory(options.out, ignored), ErrorCode::usage, "--out",
          "expected a folder for --prompts, '", options.out, "' is none");
  const std::string text = read_file(options.prompts, kMaxListBytes);
  std::vector<Job> jobs;
  std::set<fs::path> outputs;
  int64_t number = 0;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    jobs.push_back(job_of_line(line, number, options));
    require(outputs.insert(jobs.back().out).second, ErrorCode::bad_data,
            str(options.prompts, ":", number), "another line writes ", jobs.back().out.string(),
            " too");
  }
  require(!jobs.empty(), ErrorCode::bad_data, options.prompts, "holds no prompt");
  return jobs;
}

}  // namespace

std::vector<Job> make_jobs(const GenerateOptions& options) {
  const bool list = !options.prompts.empty();
  require(list != options.has_prompt, ErrorCode::usage, "--prompt",
          "give either --prompt or --prompts");
  require(!list || (options.latents.empty() && options.save_latents.empty()), ErrorCode::usage,
          "--prompts", "--latents and --save-latents go with a single --prompt");
  std::vector<Job> jobs;
  if (list) {
    jobs = read_list(options);
  } else {
    jobs.push_back({request_of(options), options.out});
  }
  for (const Job& job : jobs) {
    models::prompt_clean(job.request.prompt, "prompt");  // throws for what it cannot read
    models::prompt_clean(job.request.negative_prompt, "negative prompt");
    pipelines::check_request(job.request);
  }
  return jobs;
}

}  // namespace fovea::apps
