#include "apps/fovea/compare_run.h"

#include <cstdio>

#include <ATen/ATen.h>

#include "apps/fovea/compare_pictures.h"
#include "apps/fovea/comparison.h"
#include "core/attention/probe.h"
#include "core/check.h"
#include "core/interrupt.h"
#include "core/media/video_reader.h"
#include "models/lpips/lpips.h"

namespace fovea::apps {
namespace {

// Dense first, whatever the user lists: it is what the others are measured against. Of several,
// which differ in their executors, the one listed first.
std::vector<Method> methods_of(const CompareOptions& options) {
  std::vector<Method> methods = parse_methods(options.methods, "--methods");
  const auto dense = std::find_if(methods.begin(), methods.end(), [](const Method& method) {
    return method.attention.planner == "dense";
  });
  if (dense == methods.end()) {
    methods.insert(methods.begin(), parse_methods({"dense"}, "--methods").front());
  } else {
    std::rotate(methods.begin(), dense, dense + 1);
  }
  require(methods.size() > 1, ErrorCode::usage, "--methods", "lists no method beside dense");
  return methods;
}

// The jobs, with files in `folder`.
std::vector<Job> jobs_in(GenerateOptions options, const fs::path& folder) {
  options.out = folder.string();
  std::vector<Job> jobs = make_jobs(options);
  if (options.prompts.empty()) jobs.front().out = folder / "0001.mp4";
  return jobs;
}

// "%03d" from the names of PNG sequences goes; a video's files are named after what is left.
std::string stem_of(const Job& job) {
  std::string stem = job.out.stem().string();
  const size_t percent = stem.find('%');
  if (percent != std::string::npos) stem.resize(percent);
  while (!stem.empty() && stem.back() == '-') stem.pop_back();
  return stem.empty() ? "video" : stem;
}

double stage_seconds(const Progress& progress, const char* stage) {
  return progress.seconds().value(stage, 0.0);
}

class CompareRun {
 public:
  CompareRun(const CompareOptions& options, std::vector<Method> methods, const fs::path& folder)
      : options_(options.generate),
        folder_(folder),
        jobs_(jobs_in(options_, folder)),
        run_(options_, jobs_) {
    comparison_.methods = std::move(methods);
    if (!options.lpips.empty()) load_lpips(options.lpips);
    for (const Job& job : jobs_) {
      std::string stem = stem_of(job);
      while (!stems_.insert(stem).second) stem += "_";
      names_.push_back(stem);
    }
  }

  const Comparison& run() {
    run_.start_report(jobs_);
    run_.report().facts.erase("videos");
    if (lpips_) run_.report().facts["lpips"] = lpips_facts_;
    run_.prepare(jobs_);
    warm_up();
    for (size_t i = 0; i < jobs_.size(); ++i) compare(jobs_[i], names_[i]);
    run_.end_report();
    run_.report().facts.erase("attention");  // each method's is with it
    comparison_.facts = run_.report().json();
    write_text(folder_ / "compare.json", json_text(json_of(comparison_), 2) + "\n");
    write_text(folder_ / "compare.csv", csv_of(comparison_));
    write_text(folder_ / "compare.md", markdown_of(comparison_));
    write_text(folder_ / "compare.html", page_of(comparison_, folder_));
    return comparison_;
  }

 private:
  void load_lpips(const std::string& file) {
    lpips_ = models::load_lpips(file, run_.device(), run_.report());
    for (const Job& job : jobs_) {
      require(std::min(job.request.height, job.request.width) >= lpips_->min_side(),
              ErrorCode::usage, "--lpips", lpips_->network(), " needs pictures of ",
              lpips_->min_side(), "x", lpips_->min_side(), " or more, these are ",
              job.request.width, "x", job.request.height);
    }
    lpips_facts_ = {{"path", file}, {"sha256", sha256_file(file)}, {"network", lpips_->network()}};
  }

  Similarity similarity(const Clip& dense, const Clip& other, size_t frame) const {
    const auto &a = dense.frames[frame], &b = other.frames[frame];
    Similarity out = compare_pictures(a, b, dense.width, dense.height);
    if (lpips_) out.lpips = models::lpips_distance(*lpips_, a, b, dense.width, dense.height);
    return out;
  }

  // One step and one latent frame that no method is charged for: threads, caches and libraries
  // start up, which would otherwise make the first method slow.
  void warm_up() {
    const at::Tensor latents = run_.pipeline().denoise(
        jobs_.front().request, {.on_step = {}, .resume = {}, .last_step = 1});
    run_.decode(latents.slice(2, 0, 1), [](std::span<const uint8_t>) {});
  }

  void announce(const std::string& video, size_t method) {
    const Method& now = comparison_.methods[method];
    run_.progress().event("method", {{"video", video}, {"method", now.label}});
    if (options_.json || options_.quiet) return;
    std::fprintf(stderr, "%s: %s (%zu of %zu)\n", printable(video).c_str(),
                 printable(now.label).c_str(), method + 1, comparison_.methods.size());
  }

  MethodVideo make(const Job& job, const Method& method, Clip& clip) {
    MethodVideo out;
    AttentionProbe probe;
    const PlanRecipe attention = for_model(method.attention, run_.fingerprint());
    run_.pipeline().set_attention(
        attention.planner, attention.options,
        [&](const AttentionCall& call, const AttentionPlan& plan, const AttentionResult& result) {
          probe.observe(call, plan, result);
        },
        method.executor);
    const Progress& progress = run_.progress();
    const double denoised = stage_seconds(progress, "denoise");
    const double decoded = stage_seconds(progress, "decode");
    const at::Tensor latents = run_.pipeline().denoise(job.request);
    out.denoise_seconds = stage_seconds(progress, "denoise") - denoised - probe.seconds();
    run_.decode(latents, [&](std::span<const uint8_t> frame) {
      clip.frames.emplace_back(frame.begin(), frame.end());
    });
    out.decode_seconds = stage_seconds(progress, "decode") - decoded;
    out.density = probe.density();
    out.error = probe.error();
    out.recall = probe.recall();
    for (const auto& [kind, calls] : run_.pipeline().attention_counts()) {
      if (kind.rfind("text: ", 0) != 0) out.executors[kind] = calls;
    }
    run_.pipeline().set_attention("dense", Json::object());
    return out;
  }

  void compare(const Job& job, const std::string& name) {
    ComparedVideo video;
    video.name = name;
    video.prompt = job.request.prompt;
    video.settings = run_.settings(job, {});
    for (const char* key : {"attention", "attention_options"}) video.settings.erase(key);
    std::vector<Clip> clips;
    for (size_t m = 0; m < comparison_.methods.size(); ++m) {
      announce(name, m);
      const Method& method = comparison_.methods[m];
      Clip clip{static_cast<int>(job.request.width), static_cast<int>(job.request.height), {}};
      MethodVideo made = make(job, method, clip);
      clips.push_back(std::move(clip));
      for (size_t i = 0; i < clips.back().frames.size(); ++i) {
        throw_if_interrupted();
        made.frames.push_back(similarity(clips[0], clips.back(), i));
      }
      made.file = write_clip(job, name + "-" + method.name, method.attention, clips.back());
      video.methods.push_back(std::move(made));
    }
    write_pictures(job, clips, video);
    comparison_.videos.push_back(std::move(video));
  }

  // The file that `generate` would have written. Returns its name.
  std::string write_clip(const Job& job, const std::string& name, const PlanRecipe& attention,
                         const Clip& clip) {
    VideoOptions options = run_.video_options(job, attention);
    options.path = folder_ / (name + (has_video_formats() ? ".mp4" : "-%03d.png"));
    const auto writer = make_video_writer(options);
    for (const auto& frame : clip.frames) writer->write(frame);
    writer->finish();
    return options.path.filename().string();
  }

  std::vector<ClipLabel> labels(const ComparedVideo& video) const {
    const std::vector<MethodSummary> summaries =
        summarize({comparison_.methods, {video}, Json::object()});
    std::vector<ClipLabel> out;
    for (size_t m = 0; m < summaries.size(); ++m) {
      const MethodSummary& made = summaries[m];
      const bool equal = std::isinf(made.similarity.psnr());
      const std::string quality = equal ? "equal" : number(made.similarity.psnr(), 1) + " dB";
      out.push_back(
          {comparison_.methods[m].label, m == 0 ? number(made.seconds(), 1) + " s"
                                                : quality + ", " + number(made.speedup, 2) + "x"});
    }
    return out;
  }

  void write_pictures(const Job& job, const std::vector<Clip>& clips, ComparedVideo& video) {
    const std::vector<ClipLabel> own = labels(video);
    const SideBySide sides(clips, own);
    VideoOptions options = run_.video_options(job, {});
    options.path = folder_ / (video.name + (has_video_formats() ? ".mp4" : "-%03d.png"));
    options.width = sides.width();
    options.height = sides.height();
    options.comment = json_text(video.settings);
    const auto writer = make_video_writer(options);
    for (size_t i = 0; i < clips[0].frames.size(); ++i) writer->write(sides.frame(i).rgb);
    writer->finish();
    video.side_by_side = options.path.filename().string();
    video.sheet = video.name + "-sheet.png";
    const Picture sheet = contact_sheet(clips, own, video.prompt);
    write_text(folder_ / video.sheet, encode_png(sheet, {{"Comment", options.comment}}));
  }

  const GenerateOptions& options_;
  fs::path folder_;
  std::vector<Job> jobs_;
  VideoRun run_;
  std::optional<models::Lpips> lpips_;
  Json lpips_facts_;
  std::set<std::string> stems_;
  std::vector<std::string> names_;
  Comparison comparison_;
};

}  // namespace

int run_compare(CompareOptions options) {
  const std::vector<Method> methods = methods_of(options);
  AtomicFolder folder(options.generate.out);
  const GenerateOptions& generate = options.generate;
  CompareRun run(options, methods, folder.temporary_path());
  const Comparison& comparison = run.run();
  folder.commit();
  if (!generate.json) {
    std::printf("%s\n%s\n", markdown_of(comparison).c_str(),
                (folder.path() / "compare.html").c_str());
  }
  return 0;
}

}  // namespace fovea::apps
