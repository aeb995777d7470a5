#include "core/media/picture.h"

#include <algorithm>

#include "core/check.h"
#include "core/media/picture_header.h"
#include "core/media/png_chunks.h"
#include "core/media/stb.h"

namespace fovea {
namespace {

constexpr uint64_t kMaxTextBytes = 16u << 20;
constexpr uint64_t kMaxPngBytes = 256u << 20;

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return static_cast<signed char>(c) >= 0; });
}

std::string text_chunk(const std::string& keyword, const std::string& text) {
  const bool printable_keyword =
      std::all_of(keyword.begin(), keyword.end(), [](char c) { return c >= 32 && c < 127; });
  require(printable_keyword && !keyword.empty() && keyword.size() <= 79 && keyword.front() != ' ' &&
              keyword.back() != ' ',
          ErrorCode::usage, "PNG text", "'", keyword, "' cannot be a keyword");
  require(text.find('\0') == std::string::npos && text.size() <= kMaxTextBytes, ErrorCode::usage,
          "PNG text", "expected up to ", kMaxTextBytes, " bytes without NUL, got ", text.size());
  const std::string separator(1, '\0');
  if (is_ascii(text)) return png::encode_chunk("tEXt", keyword + separator + text);
  // Not compressed (flag 0, method 0), no language, no translated keyword.
  return png::encode_chunk("iTXt", keyword + std::string(5, '\0') + text);
}

std::string latin1_to_utf8(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x80) {
      out += c;
    } else {
      out += static_cast<char>(0xC0 | byte >> 6);
      out += static_cast<char>(0x80 | (byte & 0x3F));
    }
  }
  return out;
}

// Takes the bytes up to the next NUL off the front of `rest`.
std::string_view take_field(std::string_view& rest, const std::string& where) {
  const size_t end = rest.find('\0');
  require(end != std::string_view::npos, ErrorCode::bad_data, where, "damaged PNG text chunk");
  const std::string_view field = rest.substr(0, end);
  rest.remove_prefix(end + 1);
  return field;
}

std::string read_itxt(std::string_view rest, const std::string& where) {
  require(rest.size() >= 2, ErrorCode::bad_data, where, "damaged PNG text chunk");
  const bool compressed = rest[0] != 0;
  rest.remove_prefix(2);
  take_field(rest, where);  // language
  take_field(rest, where);  // translated keyword
  return compressed ? stb::inflate(rest, where, kMaxTextBytes) : std::string(rest);
}

}  // namespace

Picture make_picture(int width, int height) {
  return {width, height, std::vector<uint8_t>(static_cast<size_t>(width) * height * 3)};
}

void check_picture_size(int64_t width, int64_t height, std::string_view where,
                        const PictureLimits& limits) {
  require(width >= 1 && height >= 1, ErrorCode::usage, where,
          "expected a size of at least 1x1, got ", width, "x", height);
  require(
      width <= limits.max_side && height <= limits.max_side && width * height <= limits.max_pixels,
      ErrorCode::resource, where, "picture of ", width, "x", height, " is above the budget of ",
      limits.max_side, " pixels a side and ", limits.max_pixels, " in all");
}

PictureInfo probe_picture(const fs::path& path, const PictureLimits& limits) {
  return read_picture_header(read_file(path, limits.max_file_bytes), path.string(), limits).info;
}

Picture read_picture(const fs::path& path, const PictureLimits& limits) {
  return decode_picture(read_file(path, limits.max_file_bytes), path.string(), limits);
}

Picture decode_picture(std::string_view bytes, const std::string& where,
                       const PictureLimits& limits) {
  const PictureHeader header = read_picture_header(bytes, where, limits);
  // Twice, as buffers grow by doubling; the constant is for the decoder's own tables.
  const uint64_t max_allocation = 2 * (header.unpacked_bytes + bytes.size()) + (1 << 20);
  Picture picture{header.info.width, header.info.height, {}};
  picture.rgb = stb::decode_rgb(bytes, where, picture.width, picture.height, max_allocation);
  return picture;
}

Picture oriented(const Picture& picture, int orientation) {
  FOVEA_ASSERT(orientation >= 1 && orientation <= 8);
  // Where output (0, 0) lies in the source, and whether its rows run along source columns.
  const bool transposed = orientation >= 5;
  const bool right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool bottom = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const int width = transposed ? picture.height : picture.width;
  const int height = transposed ? picture.width : picture.height;
  Picture out = make_picture(width, height);
  uint8_t* target = out.rgb.data();
  for (int y = 0; y < height; ++y) {
    for (int x = 0; x < width; ++x) {
      int source_x = transposed ? y : x;
      int source_y = transposed ? x : y;
      if (right) source_x = picture.width - 1 - source_x;
      if (bottom) source_y = picture.height - 1 - source_y;
      const size_t source = (static_cast<size_t>(source_y) * picture.width + source_x) * 3;
      for (int c = 0; c < 3; ++c) *target++ = picture.rgb[source + c];
    }
  }
  return out;
}

std::string encode_png(const uint8_t* rgb, int width, int height, const PngText& text) {
  check_picture_size(width, height, "PNG");
  std::string bytes = stb::encode_png(rgb, width, height);
  std::string texts;
  for (const auto& [keyword, value] : text) texts += text_chunk(keyword, value);
  constexpr size_t kAfterHeader = 8 + 12 + 13;  // signature, IHDR
  bytes.insert(kAfterHeader, texts);
  return bytes;
}

std::string encode_png(const Picture& picture, const PngText& text) {
  return encode_png(picture.rgb.data(), picture.width, picture.height, text);
}

PngText read_png_text(const fs::path& path) {
  const std::string where = path.string();
  const std::string bytes = read_file(path, kMaxPngBytes);
  PngText texts;
  for (const png::Chunk& chunk : png::chunks(bytes, where)) {
    if (chunk.type != "tEXt" && chunk.type != "zTXt" && chunk.type != "iTXt") continue;
    require(chunk.data.size() <= kMaxTextBytes + 256, ErrorCode::resource, where, "PNG text of ",
            chunk.data.size(), " bytes");
    std::string_view rest = chunk.data;
    const std::string keyword = latin1_to_utf8(take_field(rest, where));
    std::string text;
    if (chunk.type == "tEXt") {
      text = latin1_to_utf8(rest);
    } else if (chunk.type == "iTXt") {
      text = read_itxt(rest, where);
    } else {
      require(!rest.empty(), ErrorCode::bad_data, where, "damaged PNG text chunk");
      text = latin1_to_utf8(stb::inflate(rest.substr(1), where, kMaxTextBytes));
    }
    texts.emplace(keyword, std::move(text));
  }
  return texts;
}

}  // namespace fovea
