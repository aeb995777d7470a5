#include <sys/resource.h>
#include <sys/wait.h>

#include <array>
#include <cmath>
#include <csignal>
#include <functional>
#include <random>

#include "core/interrupt.h"
#include "core/media/gif_blocks.h"
#include "core/media/picture.h"
#include "core/media/video_reader.h"
#include "core/media/video_writer.h"
#include "tests/core/media/media_testing.h"

namespace fovea {
namespace {

using fovea::testing::error_code;
using fovea::testing::read_bytes;
using fovea::testing::TemporaryFolder;
using fovea::testing::write_bytes;

using Names = std::vector<std::string>;

// A gradient that moves, so that no two frames are equal.
std::vector<uint8_t> moving_frame(int width, int height, int64_t index) {
  std::vector<uint8_t> rgb;
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      rgb.push_back(static_cast<uint8_t>(128 + 100 * std::sin((x + 3 * index) / 11.0)));
      rgb.push_back(static_cast<uint8_t>(128 + 100 * std::sin((y - 2 * index) / 17.0)));
      rgb.push_back(static_cast<uint8_t>(40 + 8 * (index % 16)));
    }
  }
  return rgb;
}

VideoResult write_video(const VideoOptions& options) {
  const std::unique_ptr<VideoWriter> writer = make_video_writer(options);
  for (int64_t i = 0; i < options.frames; ++i) {
    writer->write(moving_frame(options.width, options.height, i));
  }
  return writer->finish();
}

std::string json_comment(size_t bytes) {
  std::string text = R"({"prompt": "eine Katze 🐈 über den Dächern", "seed": 7, "pad": ")";
  while (text.size() < bytes) text += "🎬 x";
  return text + "\"}";
}

std::vector<std::string> formats() {
  if (has_video_formats()) return {"a.mp4", "a.webm", "a.gif", "a_%03d.png"};
  return {"a_%03d.png"};
}

fs::path first_file(const fs::path& path) {
  std::string name = path.string();
  if (const size_t at = name.find("%03d"); at != std::string::npos) name.replace(at, 4, "000");
  return name;
}

TEST(VideoWriter, LeavesTheOldFileAloneWithoutOverwrite) {
  for (const std::string& name : formats()) {
    const TemporaryFolder folder;
    const fs::path old = first_file(folder / name);
    write_bytes(old, "old");
    VideoOptions options{.path = folder / name, .width = 32, .height = 16, .frames = 2};
    EXPECT_EQ(error_code([&] { make_video_writer(options); }), ErrorCode::conflict) << name;
    EXPECT_EQ(error_code([&] { check_video_options(options); }), ErrorCode::conflict) << name;
    EXPECT_EQ(read_bytes(old), "old");
    EXPECT_EQ(folder.names().size(), 1u);
    options.overwrite = true;
    write_video(options);
    EXPECT_GT(read_bytes(old).size(), 20u) << name;
  }
}

TEST(VideoWriter, KeepsAFileThatAppearsMeanwhile) {
  for (const std::string& name : formats()) {
    const TemporaryFolder folder;
    const VideoOptions options{.path = folder / name, .width = 32, .height = 16, .frames = 3};
    const std::unique_ptr<VideoWriter> writer = make_video_writer(options);
    for (int i = 0; i < 3; ++i) writer->write(moving_frame(32, 16, i));
    write_bytes(first_file(folder / name), "new");
    EXPECT_EQ(error_code([&] { writer->finish(); }), ErrorCode::conflict) << name;
    EXPECT_EQ(read_bytes(first_file(folder / name)), "new");
  }
}

TEST(VideoWriter, LeavesNothingWhenItIsNotFinished) {
  for (const std::string& name : formats()) {
    const TemporaryFolder folder;
    const VideoOptions options{.path = folder / name, .width = 32, .height = 16, .frames = 5};
    {
      const std::unique_ptr<VideoWriter> writer = make_video_writer(options);
      writer->write(moving_frame(32, 16, 0));
      EXPECT_EQ(error_code([&] { writer->finish(); }), ErrorCode::usage) << "frames are missing";
      EXPECT_EQ(error_code([&] { writer->write(moving_frame(32, 15, 0)); }), ErrorCode::usage);
    }
    EXPECT_EQ(folder.names(), Names{}) << name;
  }
}

TEST(VideoWriter, RefusesFramesBeyondTheNumberAnnounced) {
  const TemporaryFolder folder;
  const std::unique_ptr<VideoWriter> writer =
      make_video_writer({.path = folder / "a.png", .width = 4, .height = 4, .frames = 1});
  writer->write(moving_frame(4, 4, 0));
  EXPECT_EQ(error_code([&] { writer->write(moving_frame(4, 4, 1)); }), ErrorCode::usage);
  EXPECT_EQ(writer->finish().frames, 1);
}

TEST(VideoWriter, RepeatsByteForByte) {
  for (const std::string& name : formats()) {
    std::vector<std::string> runs;
    for (int run = 0; run < 10; ++run) {
      const TemporaryFolder folder;
      write_video(
          {.path = folder / name, .width = 96, .height = 64, .frames = 12, .comment = "{}"});
      std::string all;
      for (const std::string& file : folder.names()) all += read_bytes(folder / file);
      runs.push_back(all);
    }
    for (const std::string& run : runs) EXPECT_EQ(run, runs[0]) << name;
  }
}

TEST(VideoWriter, RefusesBadOptions) {
  const TemporaryFolder folder;
  const auto code = [&](const std::function<void(VideoOptions&)>& change) {
    VideoOptions options{.path = folder / "a_%d.png", .width = 8, .height = 8, .frames = 2};
    change(options);
    return error_code([&] { make_video_writer(options); });
  };
  EXPECT_EQ(code([](VideoOptions&) {}), std::nullopt);
  for (const char* name : {"a", "a.avi", "a.png", "a_%x.png", "a_%3d.png", "a_%00d.png", "a_%.png",
                           "a_%d_%d.png", "a_%%.png", "a_%010d.png", "a_%s%d.png", "missing/a.mp4",
                           "missing/a_%d.png", "missing/a.gif", ".mp4"}) {
    EXPECT_EQ(code([&](VideoOptions& o) { o.path = folder / name; }), ErrorCode::usage) << name;
  }
  EXPECT_EQ(code([](VideoOptions& o) { o.width = 0; }), ErrorCode::usage);
  EXPECT_EQ(code([](VideoOptions& o) { o.height = -4; }), ErrorCode::usage);
  EXPECT_EQ(code([](VideoOptions& o) { o.frames = 0; }), ErrorCode::usage);
  EXPECT_EQ(code([](VideoOptions& o) { o.threads = 0; }), ErrorCode::usage);
  EXPECT_EQ(code([](VideoOptions& o) { o.fps = {0, 1}; }), ErrorCode::usage);
  EXPECT_EQ(code([](VideoOptions& o) { o.comment = std::string("a\0b", 3); }), ErrorCode::usage);
  EXPECT_EQ(code([](VideoOptions& o) { o.width = 4097; }), ErrorCode::resource);
  EXPECT_EQ(code([](VideoOptions& o) { o.frames = 20001; }), ErrorCode::resource);
  EXPECT_EQ(code([](VideoOptions& o) { o.width = o.height = 4096, o.frames = 600; }),
            ErrorCode::resource);
  EXPECT_EQ(folder.names(), Names{});
}

TEST(PngSequence, NumbersFilesAndKeepsTheComment) {
  const TemporaryFolder folder;
  const std::string comment = json_comment(66'000);
  const VideoResult result = write_video(
      {.path = folder / "f_%02d.x.png", .width = 7, .height = 5, .frames = 12, .comment = comment});
  EXPECT_EQ(result.frames, 12);
  EXPECT_EQ(result.format, "png");
  ASSERT_EQ(result.files.size(), 12u);
  EXPECT_EQ(result.files[11], folder / "f_11.x.png");
  uint64_t bytes = 0;
  for (int i = 0; i < 12; ++i) {
    const Picture picture = read_picture(result.files[i]);
    EXPECT_EQ(picture.rgb, moving_frame(7, 5, i));
    EXPECT_EQ(read_comment(result.files[i]), comment);
    bytes += fs::file_size(result.files[i]);
  }
  EXPECT_EQ(result.bytes, bytes);
  EXPECT_EQ(folder.names().size(), 12u);
}

TEST(PngSequence, NeverMixesTwoVideos) {
  const TemporaryFolder folder;
  VideoOptions options{.path = folder / "f_%d.png", .width = 4, .height = 4, .frames = 3};
  write_bytes(folder / "f_2.png", "old");
  EXPECT_EQ(error_code([&] { make_video_writer(options); }), ErrorCode::conflict);
  options.overwrite = true;
  EXPECT_EQ(error_code([&] { make_video_writer(options); }), std::nullopt);
  write_bytes(folder / "f_3.png", "longer");
  EXPECT_EQ(error_code([&] { make_video_writer(options); }), ErrorCode::conflict);
  fs::remove(folder / "f_3.png");
  // Names that the pattern does not make are somebody else's.
  for (const char* name : {"f_03.png", "f_.png", "f_x.png", "g_3.png", "f_3.png.txt"}) {
    write_bytes(folder / name, "other");
  }
  write_video(options);
  EXPECT_EQ(read_picture(folder / "f_2.png").rgb, moving_frame(4, 4, 2));
  EXPECT_EQ(read_bytes(folder / "f_03.png"), "other");
  EXPECT_EQ(folder.names().size(), 8u);
}

TEST(PngSequence, RemovesItsFilesWhenOneCannotBeRenamed) {
  const TemporaryFolder folder;
  const std::unique_ptr<VideoWriter> writer =
      make_video_writer({.path = folder / "f_%d.png", .width = 4, .height = 4, .frames = 3});
  for (int i = 0; i < 3; ++i) writer->write(moving_frame(4, 4, i));
  fs::create_directory(folder / "f_2.png");
  EXPECT_EQ(error_code([&] { writer->finish(); }), ErrorCode::conflict);
  EXPECT_FALSE(fs::exists(folder / "f_0.png"));
  EXPECT_FALSE(fs::exists(folder / "f_1.png"));
}

TEST(PngSequence, OnePictureNeedsNoNumber) {
  const TemporaryFolder folder;
  const VideoResult result =
      write_video({.path = folder / "a.PNG", .width = 1, .height = 1, .frames = 1, .comment = "ü"});
  EXPECT_EQ(result.files, std::vector<fs::path>{folder / "a.PNG"});
  EXPECT_EQ(read_comment(folder / "a.PNG"), "ü");
}

// Runs `action` in a child process whose files cannot grow above `bytes`; the Error's code, or 0.
int code_with_file_limit(rlim_t bytes, const std::function<void()>& action) {
  const pid_t child = ::fork();
  if (child == 0) {
    std::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{bytes, bytes};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    const std::optional<ErrorCode> code = error_code(action);
    ::_exit(code ? static_cast<int>(*code) : 0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

TEST(VideoWriter, EndsCleanlyWhenTheDiskIsFull) {
  for (const std::string& name : formats()) {
    const TemporaryFolder measured;
    VideoOptions options{.path = measured / name,
                         .width = 160,
                         .height = 96,
                         .frames = 20,
                         .comment = json_comment(3000)};
    const VideoResult whole = write_video(options);
    const rlim_t size = fs::file_size(whole.files.back());
    // From the very first byte to the last but one; a file at its full size fits.
    for (const rlim_t limit :
         {rlim_t{0}, rlim_t{10}, size / 8, size / 2, size - size / 8, size - 1}) {
      const TemporaryFolder folder;
      options.path = folder / name;
      EXPECT_EQ(code_with_file_limit(limit, [&] { write_video(options); }), 4)
          << name << " of " << size << " bytes, limit " << limit;
      EXPECT_EQ(folder.names(), Names{}) << name << ", limit " << limit;
    }
    const TemporaryFolder folder;
    options.path = folder / name;
    EXPECT_EQ(code_with_file_limit(whole.bytes, [&] { write_video(options); }), 0) << name;
  }
}

TEST(VideoWriter, StopsWhenInterrupted) {
  for (const std::string& name : formats()) {
    const TemporaryFolder folder;
    const std::string path = (folder / name).string();
    const int code = code_with_file_limit(RLIM_INFINITY, [&] {
      const std::unique_ptr<VideoWriter> writer =
          make_video_writer({.path = path, .width = 32, .height = 32, .frames = 3});
      writer->write(moving_frame(32, 32, 0));
      request_interrupt(SIGINT);
      writer->write(moving_frame(32, 32, 1));
    });
    EXPECT_EQ(code, 130) << name;
    EXPECT_EQ(folder.names(), Names{}) << name;
  }
}

TEST(ReadComment, IsNothingWhereThereIsNone) {
  const TemporaryFolder folder;
  for (const std::string& name : formats()) {
    write_video({.path = folder / name, .width = 16, .height = 16, .frames = 2});
    EXPECT_EQ(read_comment(first_file(folder / name)), std::nullopt) << name;
  }
  EXPECT_EQ(error_code([&] { read_comment(folder / "missing.mp4"); }), ErrorCode::bad_data);
}

#if FOVEA_HAS_FFMPEG

TEST(Video, KeepsSizeFramesRateAndComment) {
  struct Case {
    std::string name;
    int width, height;
    int64_t frames;
    Rational fps;
    size_t comment_bytes;
  };
  std::vector<Case> cases;
  for (const char* name : {"a.mp4", "a.webm", "a.gif"}) {
    cases.push_back({name, 64, 48, 17, {24, 1}, 0});
    cases.push_back({name, 65, 48, 5, {24000, 1001}, 66'000});
    cases.push_back({name, 64, 37, 2, {50, 1}, 400'000});
    cases.push_back({name, 33, 35, 9, {30000, 1001}, 255});
    cases.push_back({name, 96, 16, 1, {16, 1}, 300});
    cases.push_back({name, 16, 16, 3, {1, 10}, 1});
    cases.push_back({name, 1, 1, 2, {24, 1}, 10});
    cases.push_back({name, 2, 3, 4, {12, 1}, 10});
    cases.push_back({name, 1, 64, 4, {12, 1}, 10});
  }
  for (const Case& c : cases) {
    const TemporaryFolder folder;
    const std::string comment = c.comment_bytes ? json_comment(c.comment_bytes) : "";
    SCOPED_TRACE(c.name + " " + std::to_string(c.width) + "x" + std::to_string(c.height));
    VideoResult result;
    try {
      result = write_video({.path = folder / c.name,
                            .width = c.width,
                            .height = c.height,
                            .frames = c.frames,
                            .fps = c.fps,
                            .comment = comment});
    } catch (const Error& error) {
      ADD_FAILURE() << error.what();
      continue;
    }
    EXPECT_EQ(folder.names(), Names{c.name});
    const VideoInfo info = probe_video(folder / c.name);
    EXPECT_EQ(info.width, c.width);
    EXPECT_EQ(info.height, c.height);
    EXPECT_EQ(info.frames, c.frames);
    EXPECT_EQ(info.format, result.format);
    EXPECT_EQ(info.codec, result.codec);
    EXPECT_NEAR(info.fps.value() / result.fps.value(), 1, 1e-3);
    EXPECT_EQ(read_comment(folder / c.name).value_or(""), comment);
    if (c.name != "a.gif") {
      EXPECT_EQ(result.fps, c.fps);
    }
    const bool odd = c.width % 2 != 0 || c.height % 2 != 0;
    if (c.name == "a.mp4") {
      EXPECT_EQ(info.fps, c.fps);
      EXPECT_EQ(result.pixel_format, odd ? "yuv444p" : "yuv420p");
    }
    EXPECT_EQ(result.notes.empty(), !(c.name == "a.mp4" && odd) && result.fps == c.fps);
  }
}

TEST(Video, DecodesToWhatWasWritten) {
  for (const auto& [name, bound] : {std::pair{"a.mp4", 2.0}, {"a.webm", 2.5}, {"a.gif", 4.0}}) {
    const TemporaryFolder folder;
    write_video({.path = folder / name, .width = 160, .height = 120, .frames = 8});
    const std::unique_ptr<VideoReader> reader = open_video(folder / name);
    Picture frame;
    for (int64_t i = 0; i < 8; ++i) {
      ASSERT_TRUE(reader->read(frame));
      const std::vector<uint8_t> expected = moving_frame(160, 120, i);
      double sum = 0;
      for (size_t k = 0; k < expected.size(); ++k) sum += std::abs(expected[k] - frame.rgb[k]);
      EXPECT_LE(sum / static_cast<double>(expected.size()), bound) << name << " frame " << i;
    }
    EXPECT_FALSE(reader->read(frame));
    EXPECT_FALSE(reader->read(frame));
  }
}

TEST(Video, KeepsFlatColours) {
  const std::vector<std::array<uint8_t, 3>> colours = {
      {0, 0, 0},      {255, 255, 255}, {255, 0, 0},     {0, 255, 0},
      {0, 0, 255},    {255, 255, 0},   {128, 128, 128}, {17, 200, 90},
      {250, 120, 30}, {60, 20, 140},   {1, 2, 3},       {200, 180, 160}};
  for (const auto& [name, width] :
       {std::pair{"a.mp4", 48}, {"a.mp4", 47}, {"a.webm", 48}, {"a.webm", 47}, {"a.gif", 48}}) {
    for (const auto& colour : colours) {
      const TemporaryFolder folder;
      const auto writer =
          make_video_writer({.path = folder / name, .width = width, .height = 32, .frames = 2});
      std::vector<uint8_t> rgb;
      for (int i = 0; i < width * 32; ++i) rgb.insert(rgb.end(), colour.begin(), colour.end());
      writer->write(rgb);
      writer->write(rgb);
      writer->finish();
      const auto reader = open_video(folder / name);
      int largest = 0;
      for (Picture frame; reader->read(frame);) {
        for (size_t i = 0; i < rgb.size(); ++i) {
          largest = std::max(largest, std::abs(rgb[i] - frame.rgb[i]));
        }
      }
      EXPECT_LE(largest, 3) << name << " " << width << ": " << int{colour[0]} << ","
                            << int{colour[1]} << "," << int{colour[2]};
    }
  }
}

TEST(Gif, DelaysAddUpToTheRate) {
  struct Case {
    Rational fps;
    int64_t frames;
    Rational delivered;
  };
  for (const Case& c : {Case{{24, 1}, 24, {24, 1}}, Case{{24, 1}, 1, {25, 1}},
                        Case{{50, 1}, 10, {50, 1}}, Case{{24000, 1001}, 24, {24, 1}},
                        Case{{16, 1}, 81, {8100, 506}}, Case{{30, 1}, 3, {30, 1}}}) {
    const TemporaryFolder folder;
    const VideoResult result = write_video(
        {.path = folder / "a.gif", .width = 8, .height = 8, .frames = c.frames, .fps = c.fps});
    EXPECT_EQ(result.fps, reduced(c.delivered.num, c.delivered.den)) << c.fps.text();
    EXPECT_EQ(result.notes.empty(), result.fps == c.fps);
    const GifInfo info = read_gif(folder / "a.gif");
    EXPECT_EQ(info.frames, c.frames);
    EXPECT_EQ(reduced(info.frames * 100, info.delay_cs), result.fps);
  }
}

TEST(Gif, RefusesRatesThatPlayersWouldSlowDown) {
  const TemporaryFolder folder;
  for (const Rational fps : {Rational{60, 1}, Rational{60000, 1001}, Rational{5001, 100}}) {
    EXPECT_EQ(error_code([&] {
                make_video_writer(
                    {.path = folder / "a.gif", .width = 8, .height = 8, .frames = 2, .fps = fps});
              }),
              ErrorCode::usage);
  }
}

TEST(Gif, KeepsFramesThatAreEqual) {
  const TemporaryFolder folder;
  const auto writer =
      make_video_writer({.path = folder / "a.gif", .width = 20, .height = 20, .frames = 6});
  for (int i = 0; i < 6; ++i) writer->write(moving_frame(20, 20, 0));
  EXPECT_EQ(writer->finish().frames, 6);
  EXPECT_EQ(read_gif(folder / "a.gif").frames, 6);
}

TEST(OpenVideo, SurvivesDamageAndTruncation) {
  std::mt19937 random(5);
  for (const char* name : {"a.mp4", "a.webm", "a.gif"}) {
    const TemporaryFolder folder;
    write_video({.path = folder / name,
                 .width = 48,
                 .height = 32,
                 .frames = 6,
                 .comment = json_comment(100)});
    const std::string whole = read_bytes(folder / name);
    int refused = 0;
    const auto read_all = [&](const std::string& bytes) {
      write_bytes(folder / "damaged", bytes);
      const auto code = error_code([&] {
        const auto reader = open_video(folder / "damaged", {.max_side = 512, .max_frames = 50});
        for (Picture frame; reader->read(frame);) {
        }
      });
      if (code) ++refused;
      EXPECT_TRUE(!code || code == ErrorCode::bad_data || code == ErrorCode::resource)
          << name << " " << static_cast<int>(*code);
      error_code([&] { read_comment(folder / "damaged"); });
    };
    for (size_t size = 0; size < whole.size(); size += 1 + whole.size() / 40) {
      read_all(whole.substr(0, size));
    }
    EXPECT_GE(refused, 10) << name;
    for (int round = 0; round < 150; ++round) {
      std::string bytes = whole;
      for (int k = 1 + static_cast<int>(random() % 5); k > 0; --k) {
        bytes[random() % bytes.size()] = static_cast<char>(random());
      }
      read_all(bytes);
    }
  }
}

TEST(OpenVideo, RefusesOtherFilesAndPlaylists) {
  const TemporaryFolder folder;
  for (const char* text : {"", "x", "#EXTM3U\n/etc/passwd\n", "ffconcat version 1.0\nfile a\n",
                           "GIF89a", "\x1A\x45\xDF\xA3", "....ftypisom"}) {
    write_bytes(folder / "x.mp4", text);
    EXPECT_EQ(error_code([&] { open_video(folder / "x.mp4"); }), ErrorCode::bad_data) << text;
  }
  EXPECT_EQ(error_code([&] { open_video(folder.path()); }), ErrorCode::bad_data);
  EXPECT_EQ(error_code([&] { open_video(folder / "missing"); }), ErrorCode::bad_data);
}

TEST(OpenVideo, KeepsToItsLimits) {
  const TemporaryFolder folder;
  for (const char* name : {"a.mp4", "a.webm", "a.gif"}) {
    write_video({.path = folder / name, .width = 48, .height = 32, .frames = 6});
    const auto code = [&](const VideoLimits& limits) {
      return error_code([&] { open_video(folder / name, limits); });
    };
    EXPECT_EQ(code({.max_side = 47}), ErrorCode::resource) << name;
    EXPECT_EQ(code({.max_frames = 5}), ErrorCode::resource) << name;
    EXPECT_EQ(code({.max_pixels = 48 * 32 * 6 - 1}), ErrorCode::resource) << name;
    EXPECT_EQ(code({.max_side = 48, .max_frames = 6, .max_pixels = 48 * 32 * 6}), std::nullopt);
  }
}

TEST(Video, WorksWithAwkwardFileNames) {
  for (const char* name : {"a:b.mp4", "%d.webm", "file:x.gif", "-o.mp4", "ü 🐈 ' \" .webm"}) {
    const TemporaryFolder folder;
    write_video({.path = folder / name, .width = 16, .height = 16, .frames = 2});
    EXPECT_EQ(folder.names(), Names{name});
    EXPECT_EQ(probe_video(folder / name).frames, 2) << name;
  }
}

#else

TEST(Video, SaysWhyAFormatIsMissing) {
  const TemporaryFolder folder;
  for (const char* name : {"a.mp4", "a.webm", "a.gif"}) {
    EXPECT_EQ(error_code([&] {
                make_video_writer({.path = folder / name, .width = 8, .height = 8, .frames = 2});
              }),
              ErrorCode::usage);
  }
}

#endif

}  // namespace
}  // namespace fovea
