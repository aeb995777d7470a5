#include "core/progress.h"

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "core/check.h"

namespace fovea {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

double rounded(double seconds) {
  return static_cast<double>(static_cast<int64_t>(seconds * 1000 + 0.5)) / 1000;
}

std::string clock_text(double seconds) {
  const int64_t total = static_cast<int64_t>(seconds + 0.5);
  char text[32];
  if (total >= 3600) {
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", total / 3600, total / 60 % 60, total % 60);
  } else {
    std::snprintf(text, sizeof text, "%ld:%02ld", total / 60, total % 60);
  }
  return text;
}

// Keeps stage times; the styles below only draw.
class TimedProgress : public Progress {
 public:
  void begin(const std::string& name, int64_t total) override {
    name_ = name;
    total_ = total < 1 ? 1 : total;
    start_ = Clock::now();
    draw(0);
  }
  void update(int64_t done) override { draw(done); }
  void end() override {
    const double elapsed = seconds_since(start_);
    // A stage that comes back (next prompt of a list) adds up.
    seconds_[name_] = rounded(seconds_.value(name_, 0.0) + elapsed);
    draw_end(elapsed);
  }
  void event(const std::string&, const Json&) override {}
  Json seconds() const override { return seconds_; }

 protected:
  virtual void draw(int64_t) {}
  virtual void draw_end(double) {}

  // Seconds left, from the mean time of the units done.
  double remaining(int64_t done) const {
    return done < 1 ? 0
                    : elapsed() / static_cast<double>(done) * static_cast<double>(total_ - done);
  }
  double elapsed() const { return seconds_since(start_); }

  std::string name_;
  int64_t total_ = 1;

 private:
  Clock::time_point start_;
  Json seconds_ = Json::object();
};

class BarProgress : public TimedProgress {
 protected:
  void draw(int64_t done) override {
    constexpr int kWidth = 30;
    const int filled = static_cast<int>(done * kWidth / total_);
    std::string bar(static_cast<size_t>(filled), '#');
    bar.resize(kWidth, '.');
    std::string line = str(name_, " [", bar, "] ", done, "/", total_, " ", clock_text(elapsed()));
    if (done > 0) line += " ETA " + clock_text(remaining(done));
    std::fprintf(stderr, "\r\x1b[K%s", line.c_str());
    std::fflush(stderr);
  }
  void draw_end(double seconds) override {
    std::fprintf(stderr, "\r\x1b[K%s %.2f s\n", name_.c_str(), seconds);
  }
};

class LineProgress : public TimedProgress {
 protected:
  void draw_end(double seconds) override {
    std::fprintf(stderr, "%s %.2f s\n", name_.c_str(), seconds);
  }
};

class JsonProgress : public TimedProgress {
 public:
  void event(const std::string& name, const Json& fields) override {
    Json line = {{"event", name}};
    line.update(fields);
    print(line);
  }

 protected:
  void draw(int64_t done) override {
    Json line = {{"event", "progress"}, {"stage", name_}, {"done", done}, {"total", total_}};
    line["seconds"] = rounded(elapsed());
    if (done > 0) line["eta_seconds"] = rounded(remaining(done));
    print(line);
  }
  void draw_end(double seconds) override {
    print({{"event", "stage"}, {"stage", name_}, {"seconds", rounded(seconds)}});
  }

 private:
  // Flushed by line, so that a reader sees each event when it happens.
  static void print(const Json& line) {
    std::fprintf(stdout, "%s\n", line.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    std::fflush(stdout);
  }
};

}  // namespace

std::unique_ptr<Progress> make_progress(ProgressStyle style) {
  switch (style) {
    case ProgressStyle::silent:
      return std::make_unique<TimedProgress>();
    case ProgressStyle::lines:
      return std::make_unique<LineProgress>();
    case ProgressStyle::json:
      return std::make_unique<JsonProgress>();
    case ProgressStyle::bar:
      break;
  }
  if (::isatty(STDERR_FILENO) == 0) return std::make_unique<LineProgress>();
  return std::make_unique<BarProgress>();
}

}  // namespace fovea
