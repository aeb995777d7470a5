#include <algorithm>
#include <cstdio>
#include <deque>
#include <future>
#include <optional>

#include "core/check.h"
#include "core/interrupt.h"
#include "core/media/picture.h"
#include "core/media/video_formats.h"

namespace fovea {
namespace {

// A file name with one frame number in it.
struct Pattern {
  std::string prefix;
  std::string suffix;
  int digits = 1;  // at least so many, filled with zeros

  std::string name(int64_t index) const {
    std::string number = std::to_string(index);
    if (number.size() < static_cast<size_t>(digits)) number.insert(0, digits - number.size(), '0');
    return prefix + number + suffix;
  }

  // The frame number of a name that this pattern makes.
  std::optional<int64_t> index(const std::string& file) const {
    if (!file.starts_with(prefix) || !file.ends_with(suffix)) return std::nullopt;
    if (file.size() <= prefix.size() + suffix.size()) return std::nullopt;
    const std::string number =
        file.substr(prefix.size(), file.size() - prefix.size() - suffix.size());
    const bool all_digits =
        std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!all_digits || number.size() > 18) return std::nullopt;
    const int64_t value = std::stoll(number);
    return name(value) == file ? std::optional(value) : std::nullopt;
  }
};

// nullopt for a name without '%'.
std::optional<Pattern> parse_pattern(const fs::path& path) {
  const std::string name = path.filename().string();
  const size_t percent = name.find('%');
  if (percent == std::string::npos) return std::nullopt;
  size_t at = percent + 1;
  Pattern pattern{name.substr(0, percent), "", 1};
  if (at + 1 < name.size() && name[at] == '0' && name[at + 1] >= '1' && name[at + 1] <= '9') {
    pattern.digits = name[at + 1] - '0';
    at += 2;
  }
  const bool conversion = at < name.size() && name[at] == 'd';
  pattern.suffix = conversion ? name.substr(at + 1) : "";
  require(conversion && pattern.suffix.find('%') == std::string::npos, ErrorCode::usage,
          path.string(),
          "expected exactly one %d or %0Nd (N from 1 to 9) and no other % in the name");
  return pattern;
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

class PngWriter final : public VideoWriter {
 public:
  explicit PngWriter(const VideoOptions& options)
      : VideoWriter(options), pattern_(parse_pattern(options.path)) {
    if (!options.comment.empty()) text_["Comment"] = options.comment;
  }

 private:
  // Encoding and reading back take longer than a GPU needs for a frame, so frames are made side by
  // side; the caller waits when all threads are busy.
  void write_frame(const uint8_t* rgb, int64_t index) override {
    while (pending_.size() >= static_cast<size_t>(options_.threads)) take_first();
    const size_t bytes = static_cast<size_t>(options_.width) * options_.height * Picture::channels;
    std::vector<uint8_t> frame(rgb, rgb + bytes);
    pending_.push_back(std::async(std::launch::async, [this, index, frame = std::move(frame)] {
      return make(frame, index);
    }));
  }

  void take_first() {
    auto first = std::move(pending_.front());
    pending_.pop_front();
    files_.push_back(first.get());
  }

  std::unique_ptr<AtomicFile> make(const std::vector<uint8_t>& rgb, int64_t index) const {
    const fs::path path =
        pattern_ ? options_.path.parent_path() / pattern_->name(index) : options_.path;
    auto file = std::make_unique<AtomicFile>(path, options_.overwrite);
    file->write(encode_png(rgb.data(), options_.width, options_.height, text_));
    file->close_descriptor();  // thousands of frames would pass the limit of open files
    const Picture back = read_picture(file->temporary_path());
    require(back.width == options_.width && back.height == options_.height && back.rgb == rgb,
            ErrorCode::internal, path.string(), "read back: the picture differs");
    return file;
  }

  VideoResult finish_file() override {
    while (!pending_.empty()) take_first();
    check_png_output(options_);
    VideoResult result{
        .format = "png", .codec = "png", .pixel_format = "rgb24", .fps = options_.fps};
    try {
      for (const std::unique_ptr<AtomicFile>& file : files_) {
        throw_if_interrupted();
        file->commit();
        result.files.push_back(file->path());
      }
    } catch (...) {
      // What these frames have replaced cannot be brought back, so only new files are removed.
      std::error_code ignored;
      if (!options_.overwrite) {
        for (const fs::path& file : result.files) fs::remove(file, ignored);
      }
      throw;
    }
    if (pattern_) result.notes.push_back("PNG files keep no frame rate");
    return result;
  }

  std::optional<Pattern> pattern_;
  PngText text_;
  std::vector<std::unique_ptr<AtomicFile>> files_;
  std::deque<std::future<std::unique_ptr<AtomicFile>>> pending_;  // after all that its tasks use
};

}  // namespace

void check_png_output(const VideoOptions& options) {
  const std::optional<Pattern> pattern = parse_pattern(options.path);
  if (!pattern) {
    require(options.frames == 1, ErrorCode::usage, options.path.string(), "one PNG cannot hold ",
            options.frames, " frames: expected a number in the name, such as ",
            options.path.stem().string(), "_%03d.png");
    check_output_path(options.path, options.overwrite);
    return;
  }
  check_output_path(options.path.parent_path() / pattern->name(0), options.overwrite);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder_of(options.path))) {
    const std::optional<int64_t> index = pattern->index(entry.path().filename().string());
    if (!index) continue;
    require(*index < options.frames || !options.overwrite, ErrorCode::conflict,
            entry.path().string(), "belongs to a longer sequence of the same name: with ",
            options.frames, " new frames the two would mix; remove it or choose another name");
    check_output_path(entry.path(), options.overwrite);
  }
}

std::unique_ptr<VideoWriter> make_png_writer(const VideoOptions& options) {
  return std::make_unique<PngWriter>(options);
}

}  // namespace fovea
