#include "core/media/gif_blocks.h"

#include <algorithm>
#include <utility>

#include "core/check.h"

namespace fovea {
namespace {

constexpr uint64_t kMaxGifBytes = uint64_t{2} << 30;
constexpr size_t kHeaderBytes = 13;  // signature and logical screen descriptor
constexpr size_t kLoopExtensionBytes = 19;
constexpr unsigned char kExtension = 0x21, kImage = 0x2C, kTrailer = 0x3B;
constexpr unsigned char kGraphicControl = 0xF9, kComment = 0xFE, kApplication = 0xFF;

size_t palette_bytes(unsigned char flags) {
  return flags & 0x80 ? size_t{3} << ((flags & 7) + 1) : 0;
}

// A cursor that refuses to pass the end.
class Reader {
 public:
  Reader(std::string_view bytes, const std::string& where) : bytes_(bytes), where_(where) {}

  unsigned char byte() { return static_cast<unsigned char>(take(1)[0]); }
  int u16() {
    const int low = byte();
    return low | byte() << 8;
  }
  std::string_view take(size_t count) {
    require(count <= bytes_.size() - at_, ErrorCode::bad_data, where_, "byte ", at_,
            ": truncated GIF: expected ", count, " bytes, got ", bytes_.size() - at_);
    at_ += count;
    return bytes_.substr(at_ - count, count);
  }
  // Sub-blocks up to the empty one, joined into `text` if there is one.
  void sub_blocks(std::string* text) {
    while (const size_t size = byte()) {
      const std::string_view data = take(size);
      if (text) text->append(data);
    }
  }
  size_t at() const { return at_; }

 private:
  std::string_view bytes_;
  const std::string& where_;
  size_t at_ = 0;
};

void read_extension(Reader& reader, GifInfo& info, int& delay) {
  const unsigned char label = reader.byte();
  std::string data;
  reader.sub_blocks(&data);
  if (label == kComment) info.comment += data;
  if (label == kGraphicControl && data.size() >= 4) {
    delay = static_cast<unsigned char>(data[1]) | static_cast<unsigned char>(data[2]) << 8;
  }
}

void skip_image(Reader& reader) {
  reader.take(8);  // place and size
  reader.take(palette_bytes(reader.byte()));
  reader.byte();  // code size
  reader.sub_blocks(nullptr);
}

}  // namespace

GifInfo read_gif(const fs::path& path) {
  const std::string where = path.string();
  const std::string bytes = read_file(path, kMaxGifBytes);
  Reader reader(bytes, where);
  const std::string_view signature = reader.take(6);
  require(signature == "GIF89a" || signature == "GIF87a", ErrorCode::bad_data, where,
          "is no GIF file");
  GifInfo info;
  info.width = reader.u16();
  info.height = reader.u16();
  const unsigned char flags = reader.byte();
  reader.take(2);
  reader.take(palette_bytes(flags));
  int delay = 0;
  while (true) {
    const size_t at = reader.at();
    const unsigned char kind = reader.byte();
    if (kind == kTrailer) return info;
    if (kind == kExtension) {
      read_extension(reader, info, delay);
    } else {
      require(kind == kImage, ErrorCode::bad_data, where, "byte ", at,
              ": damaged GIF: unknown block ", static_cast<int>(kind));
      skip_image(reader);
      ++info.frames;
      info.delay_cs += std::exchange(delay, 0);
    }
  }
}

std::string gif_comment_block(std::string_view text) {
  std::string block;
  block += static_cast<char>(kExtension);
  block += static_cast<char>(kComment);
  for (; !text.empty(); text.remove_prefix(std::min<size_t>(text.size(), 255))) {
    const std::string_view part = text.substr(0, 255);
    block += static_cast<char>(part.size());
    block += part;
  }
  return block + '\0';
}

size_t gif_comment_position(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes) return 0;
  const size_t at = kHeaderBytes + palette_bytes(static_cast<unsigned char>(bytes[10]));
  if (bytes.size() < at + kLoopExtensionBytes) return 0;
  const bool loops = static_cast<unsigned char>(bytes[at]) == kExtension &&
                     static_cast<unsigned char>(bytes[at + 1]) == kApplication &&
                     bytes.substr(at + 3, 11) == "NETSCAPE2.0";
  return loops ? at + kLoopExtensionBytes : at;
}

}  // namespace fovea
