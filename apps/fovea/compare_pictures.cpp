#include "apps/fovea/compare_pictures.h"

#include <algorithm>
#include <cmath>

#include "core/check.h"
#include "core/media/resize.h"
#include "core/media/video_reader.h"

namespace fovea::apps {
namespace {

constexpr Color kBackground = {24, 26, 30}, kText = {238, 240, 244}, kDim = {160, 168, 180};
constexpr int kGap = 4, kLabel = 40;  // pixels: between videos, of the strip above each
constexpr int kMaxColumns = 8, kMaxThumb = 192, kMargin = 12, kTitle = 34, kHead = 20;

int columns_for(size_t clips, int width) {
  const int fit = (VideoLimits().max_side + kGap) / (width + kGap);
  return std::clamp<int>(static_cast<int>(clips), 1, std::max(fit, 1));
}

// An even number: H.264 halves the size of its colours.
int even(int value) { return value + value % 2; }

Canvas make_background(const std::vector<Clip>& clips, int columns) {
  const int rows = (static_cast<int>(clips.size()) + columns - 1) / columns;
  const int width = even(columns * (clips[0].width + kGap) - kGap);
  const int height = even(rows * (clips[0].height + kLabel + kGap) - kGap);
  check_video_size(width, height, static_cast<int64_t>(clips[0].frames.size()), "side by side");
  return {width, height, kBackground};
}

// Numbers of the frames that a sheet shows.
std::vector<size_t> shown_frames(size_t frames) {
  const size_t count = std::min<size_t>(frames, kMaxColumns);
  std::vector<size_t> out;
  for (size_t i = 0; i < count; ++i) {
    out.push_back(count == 1 ? 0 : (i * (frames - 1) + (count - 1) / 2) / (count - 1));
  }
  return out;
}

}  // namespace

SideBySide::SideBySide(const std::vector<Clip>& clips, std::vector<ClipLabel> labels)
    : clips_(clips),
      columns_(columns_for(clips.size(), clips[0].width)),
      background_(make_background(clips, columns_)) {
  for (size_t i = 0; i < labels.size(); ++i) {
    const Box box = place(i);
    const double room = box.width - 8;
    background_.text_within(box.x + 4, box.y + 17, room, labels[i].title,
                            {.size = 8, .color = kText, .bold = true});
    background_.text_within(box.x + 4, box.y + 33, room, labels[i].note,
                            {.size = 8, .color = kDim});
  }
}

Box SideBySide::place(size_t clip) const {
  const int column = static_cast<int>(clip) % columns_, row = static_cast<int>(clip) / columns_;
  const int width = clips_[0].width, height = clips_[0].height + kLabel;
  return {column * (width + kGap), row * (height + kGap), width, height};
}

Picture SideBySide::frame(size_t index) const {
  Canvas canvas = background_;
  for (size_t i = 0; i < clips_.size(); ++i) {
    const Box box = place(i);
    canvas.paste(clips_[i].frame(index), box.x, box.y + kLabel);
  }
  return canvas.picture();
}

Picture contact_sheet(const std::vector<Clip>& clips, const std::vector<ClipLabel>& labels,
                      const std::string& title) {
  const TextStyle bold{.size = 9, .color = kText, .bold = true}, plain{.size = 8, .color = kDim};
  const std::vector<size_t> shown = shown_frames(clips[0].frames.size());
  const double scale = std::min(1.0, static_cast<double>(kMaxThumb) / clips[0].width);
  const int width = static_cast<int>(std::lround(clips[0].width * scale));
  const int height = static_cast<int>(std::lround(clips[0].height * scale));
  const int pitch = std::max(36, height) + kGap;  // two lines of text need their room
  double widest = 0;
  for (const ClipLabel& label : labels) {
    widest = std::max({widest, text_width(label.title, bold), text_width(label.note, plain)});
  }
  const int left = 2 * kMargin + static_cast<int>(std::min(widest, 300.0)) + 1;
  const int columns = static_cast<int>(shown.size()), rows = static_cast<int>(clips.size());
  Canvas sheet(left + columns * (width + kGap) - kGap + kMargin,
               kTitle + kHead + rows * pitch - kGap + kMargin, kBackground);
  sheet.text_within(kMargin, 24, sheet.picture().width - 2 * kMargin, title,
                    {.size = 10, .color = kText, .bold = true});
  for (int column = 0; column < columns; ++column) {
    sheet.text(left + column * (width + kGap), kTitle + 13, str("frame ", shown[column]), plain);
  }
  for (int row = 0; row < rows; ++row) {
    const int y = kTitle + kHead + row * pitch;
    sheet.text_within(kMargin, y + height / 2.0 - 3, left - 2 * kMargin, labels[row].title, bold);
    sheet.text_within(kMargin, y + height / 2.0 + 15, left - 2 * kMargin, labels[row].note, plain);
    for (int column = 0; column < columns; ++column) {
      const Picture frame = clips[row].frame(shown[column]);
      const bool same = frame.width == width && frame.height == height;
      sheet.paste(same ? frame : resize(frame, width, height, ResizeFilter::lanczos),
                  left + column * (width + kGap), y);
    }
  }
  return sheet.picture();
}

}  // namespace fovea::apps
