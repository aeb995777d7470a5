#include <array>
#include <cmath>

#include "apps/fovea/comparison.h"
#include "apps/fovea/page_style.h"
#include "apps/fovea/svg_plot.h"
#include "core/check.h"

namespace fovea::apps {
namespace {

constexpr size_t kColors = 8;  // of the page's style; the first one is dense's
constexpr uint64_t kMaxFileBytes = 64u << 20, kMaxPageBytes = 256u << 20;

// The first method's colour is never given to another one.
size_t color_of(size_t method) { return method == 0 ? 0 : (method - 1) % (kColors - 1) + 1; }

std::string base64(const std::string& bytes) {
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string out;
  out.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t word = 0;
    for (size_t j = 0; j < 3; ++j) {
      word = word << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0u);
    }
    for (size_t j = 0; j < 4; ++j) {
      out += i + j > bytes.size() ? '=' : digits[word >> (18 - 6 * j) & 63];
    }
  }
  return out;
}

std::string swatch(size_t method) {
  return str("<span class='swatch' style='background:var(--c", color_of(method), ")'></span>");
}

class Page {
 public:
  Page(const Comparison& comparison, const fs::path& folder)
      : comparison_(comparison), folder_(folder), summaries_(summarize(comparison)) {}

  std::string text() {
    add("<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        "<title>fovea compare</title><style>");
    add(kPageStyle);
    for (size_t c = 0; c < kColors; ++c) {
      add(str(".line.c", c, "{stroke:var(--c", c, ")}.dot.c", c, ",.bar.c", c, "{fill:var(--c", c,
              ")}"));
    }
    add("</style></head><body><main>");
    add_head();
    add_table();
    add_plots();
    for (const ComparedVideo& video : comparison_.videos) add_video(video);
    add("<details><summary>The run</summary><div class='card'><pre>");
    add(escaped(json_text(comparison_.facts, 1)));
    add("</pre></div></details></main><script>");
    add(kPageScript);
    add("</script></body></html>\n");
    return std::move(out_);
  }

 private:
  void add(std::string_view text) { out_ += text; }
  bool has_lpips() const { return summaries_[0].similarity.lpips().has_value(); }
  const std::string& label(size_t method) const { return comparison_.methods[method].label; }

  void add_head() {
    const Json& facts = comparison_.facts;
    const Json model = facts.value("model", Json::object());
    const fs::path folder = fs::path(model.value("folder", "")).lexically_normal();
    const std::string name =
        folder.filename().empty() ? folder.parent_path().filename() : folder.filename();
    const Json& settings = comparison_.videos[0].settings;
    add(str("<h1>Attention compared: ", escaped(name), "</h1><p class='dim'>",
            settings.value("num_frames", 0), " frames of ", settings.value("width", 0), "×",
            settings.value("height", 0), ", ", settings.value("steps", 0), " steps, seed ",
            settings.value("seed", uint64_t{0}), ", ", escaped(facts.value("dtype", "")), " on ",
            escaped(facts.value("device", "")), ", ", comparison_.videos.size(),
            comparison_.videos.size() == 1 ? " prompt" : " prompts", ", fovea ",
            escaped(facts.value("fovea", "")), "</p>"));
  }

  void add_table() {
    add("<div class='card wide'><table><thead><tr>");
    std::vector<std::string> names = {"method",        "speed-up",       "denoising<br>speed-up",
                                      "PSNR<br>dB",    "worst<br>frame", "SSIM",
                                      "worst<br>frame"};
    if (has_lpips()) names.insert(names.end(), {"LPIPS", "worst<br>frame"});
    names.insert(names.end(), {"density", "attention<br>error", "recall", "denoise<br>s",
                               "decode<br>s", "all<br>s"});
    for (const std::string& name : names) add(str("<th>", name, "</th>"));
    add("</tr></thead><tbody>");
    for (size_t m = 0; m < summaries_.size(); ++m) {
      const MethodSummary& made = summaries_[m];
      add(str("<tr><td>", swatch(m), escaped(label(m)), "</td>"));
      std::vector<std::string> cells = {number(made.speedup, 2) + "×",
                                        number(made.denoise_speedup, 2) + "×"};
      const std::vector<std::string> quality = quality_cells(made.similarity);
      cells.insert(cells.end(), quality.begin(), quality.end());
      cells.insert(cells.end(), {number(made.density, 3), number(made.error, 3),
                                 number(made.recall, 3), number(made.denoise_seconds, 2),
                                 number(made.decode_seconds, 2), number(made.seconds(), 2)});
      for (const std::string& cell : cells) add(str("<td>", cell, "</td>"));
      add("</tr>");
    }
    add("</tbody></table></div><p class='dim' style='margin-top:8px'>PSNR and SSIM against dense, "
        "over all frames. ");
    if (has_lpips()) add("LPIPS: distance to dense as a network sees it, the less the better. ");
    add("Density: share of query-key products computed. Attention error: relative "
        "L2 distance to dense attention of the same inputs; recall: softmax mass of the keys taken "
        "one by one; both on sampled calls. Seconds: mean of a video.</p>");
  }

  void add_plots() {
    std::vector<Series> points, bars;
    for (size_t m = 0; m < summaries_.size(); ++m) {
      const MethodSummary& made = summaries_[m];
      if (m > 0) points.push_back({label(m), color_of(m), {made.speedup, made.similarity.psnr()}});
      bars.push_back({label(m), color_of(m), {made.denoise_seconds, made.decode_seconds}});
    }
    add("<h2>What it costs</h2>");
    add_legend(0);
    add("<div class='plots'><div class='card'><h3>Quality and speed-up</h3>");
    add(point_plot(points, "times as fast as dense", "PSNR, dB"));
    add("</div><div class='card'><h3>Seconds a video (denoising, then decoding)</h3>");
    add(bar_plot(bars, {"denoising", "decoding"}, "s"));
    add("</div></div>");
  }

  void add_legend(size_t first) {
    add("<div class='legend'>");
    for (size_t m = first; m < summaries_.size(); ++m) {
      add(str("<span>", swatch(m), escaped(label(m)), "</span>"));
    }
    add("</div>");
  }

  void add_video(const ComparedVideo& video) {
    const std::vector<MethodSummary> own = summarize({comparison_.methods, {video}, {}});
    add(str("<section class='prompt'><h2>", escaped(video.prompt), "</h2>"));
    std::string figures;
    bool any = false;
    for (size_t m = 0; m < own.size(); ++m) {
      const std::string clip = embedded(video.methods[m].file, "video/mp4");
      any = any || !clip.empty();
      figures += "<figure class='card'>";
      if (!clip.empty()) figures += str("<video muted playsinline src='", clip, "'></video>");
      const std::string quality = std::isinf(own[m].similarity.psnr())
                                      ? "equal to dense"
                                      : number(own[m].similarity.psnr(), 2) + " dB";
      figures +=
          str("<figcaption>", swatch(m), "<b>", escaped(label(m)), "</b><br><span class='dim'>",
              m == 0 ? "the reference" : quality + ", " + number(own[m].speedup, 2) + "×", ", ",
              number(own[m].seconds(), 2), " s</span></figcaption></figure>");
    }
    if (any) {
      add("<div class='controls'><button>Play</button><input type='range' min='0' max='1' "
          "step='0.001' value='0' aria-label='time'></div>");
    }
    add("<div class='videos'>" + figures + "</div>");
    add_frame_plots(video);
    const std::string sheet = embedded(video.sheet, "image/png");
    if (!sheet.empty()) {
      add(str("<details", any ? "" : " open",
              "><summary>Frames</summary><div class='wide'><img "
              "alt='frames of all methods' src='",
              sheet, "'></div></details>"));
    }
    add("</section>");
  }

  void add_frame_plots(const ComparedVideo& video) {
    std::vector<Series> psnr, ssim, lpips;
    for (size_t m = 1; m < video.methods.size(); ++m) {
      for (auto* series : {&psnr, &ssim, &lpips}) series->push_back({label(m), color_of(m), {}});
      for (const Similarity& frame : video.methods[m].frames) {
        psnr.back().values.push_back(frame.psnr());
        ssim.back().values.push_back(frame.ssim);
        if (frame.lpips) lpips.back().values.push_back(*frame.lpips);
      }
    }
    add("<div class='plots' style='margin-top:14px'><div class='card'><h3>PSNR of each frame</h3>");
    add(line_plot(psnr, "frame", "dB"));
    add("</div><div class='card'><h3>SSIM of each frame</h3>");
    add(line_plot(ssim, "frame", "SSIM"));
    if (has_lpips()) {
      add("</div><div class='card'><h3>LPIPS of each frame</h3>");
      add(line_plot(lpips, "frame", "LPIPS"));
    }
    add("</div></div>");
  }

  // A file of the folder as a data URL; empty where it is not one that a browser plays, or the page
  // would become too large.
  std::string embedded(const std::string& name, const std::string& type) const {
    const fs::path path = folder_ / name;
    const bool right = path.extension() == (type == "video/mp4" ? ".mp4" : ".png");
    if (!right || name.find('%') != std::string::npos) return "";
    const uint64_t size = check_regular_file(path);
    if (size > kMaxFileBytes || out_.size() + size * 4 / 3 > kMaxPageBytes) return "";
    return str("data:", type, ";base64,", base64(read_file(path, kMaxFileBytes)));
  }

  const Comparison& comparison_;
  fs::path folder_;
  std::vector<MethodSummary> summaries_;
  std::string out_;
};

}  // namespace

std::string page_of(const Comparison& comparison, const fs::path& folder) {
  return Page(comparison, folder).text();
}

}  // namespace fovea::apps
