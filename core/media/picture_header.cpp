#include "core/media/picture_header.h"

#include <cstdlib>
#include <optional>

#include "core/check.h"
#include "core/media/png_chunks.h"

namespace fovea {
namespace {

[[noreturn]] void bad(const std::string& where, const std::string& reason) {
  throw Error(ErrorCode::bad_data, where, reason);
}

uint32_t byte_at(std::string_view bytes, size_t i) { return static_cast<unsigned char>(bytes[i]); }

uint32_t big16(std::string_view bytes, size_t i) {
  return byte_at(bytes, i) << 8 | byte_at(bytes, i + 1);
}

uint32_t little16(std::string_view bytes, size_t i) {
  return byte_at(bytes, i) | byte_at(bytes, i + 1) << 8;
}

uint32_t little32(std::string_view bytes, size_t i) {
  return little16(bytes, i) | little16(bytes, i + 2) << 16;
}

void set_size(PictureHeader& header, int64_t width, int64_t height, const std::string& where,
              const PictureLimits& limits) {
  if (width < 1 || height < 1) bad(where, str("has the size ", width, "x", height));
  check_picture_size(width, height, where, limits);
  header.info.width = static_cast<int>(width);
  header.info.height = static_cast<int>(height);
}

PictureHeader png_header(std::string_view bytes, const std::string& where,
                         const PictureLimits& limits) {
  // The size is checked before the walk, so that it is named even for a cut file.
  PictureHeader header;
  header.info.format = "png";
  if (bytes.size() >= 33 && bytes.substr(12, 4) == "IHDR") {
    set_size(header, png::read_u32(bytes, 16), png::read_u32(bytes, 20), where, limits);
  }
  bool pixels = false;
  for (const png::Chunk& chunk : png::chunks(bytes, where)) {
    if (chunk.type == "IDAT") pixels = true;
    if (chunk.type == "eXIf") header.info.orientation = exif_orientation(chunk.data);
  }
  if (!pixels) bad(where, "PNG without pixels (chunk IDAT)");
  if (byte_at(bytes, 24) == 16 && byte_at(bytes, 25) == 0) {
    bad(where, "PNG with 16-bit grey samples is not supported: expected 8 bits");
  }
  // 4 channels of 16 bits, and a filter byte a row in each of 7 interlace passes.
  const uint64_t pixel_count = static_cast<uint64_t>(header.info.width) * header.info.height;
  header.unpacked_bytes = pixel_count * 8 + static_cast<uint64_t>(header.info.height) * 8;
  return header;
}

bool is_frame_header(uint32_t marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

void jpeg_frame_header(PictureHeader& header, uint32_t marker, std::string_view data,
                       const std::string& where, const PictureLimits& limits) {
  if (marker > 0xC2) bad(where, str("JPEG process SOF", marker - 0xC0, " is not supported"));
  if (data.size() < 6) bad(where, "damaged JPEG: frame header is too short");
  if (byte_at(data, 0) != 8) {
    bad(where, str("JPEG with ", byte_at(data, 0), "-bit samples is not supported"));
  }
  set_size(header, big16(data, 3), big16(data, 1), where, limits);
}

// After a scan's header: the position of the next marker that is no restart and no stuffed byte.
size_t skip_entropy_data(std::string_view bytes, size_t at) {
  for (; at + 1 < bytes.size(); ++at) {
    if (byte_at(bytes, at) != 0xFF) continue;
    const uint32_t next = byte_at(bytes, at + 1);
    if (next != 0 && next != 0xFF && !(next >= 0xD0 && next <= 0xD7)) return at;
  }
  return bytes.size();
}

PictureHeader jpeg_header(std::string_view bytes, const std::string& where,
                          const PictureLimits& limits) {
  PictureHeader header;
  header.info.format = "jpeg";
  bool scanned = false;
  size_t at = 2;
  while (true) {
    while (at + 1 < bytes.size() && byte_at(bytes, at) == 0xFF && byte_at(bytes, at + 1) == 0xFF)
      ++at;
    if (at + 1 >= bytes.size()) bad(where, str("byte ", at, ": truncated JPEG: no end marker"));
    if (byte_at(bytes, at) != 0xFF)
      bad(where, str("byte ", at, ": damaged JPEG: expected a marker"));
    const uint32_t marker = byte_at(bytes, at + 1);
    if (marker == 0xD9) break;
    at += 2;
    if (at + 2 > bytes.size()) bad(where, str("byte ", at, ": truncated JPEG"));
    const size_t length = big16(bytes, at);
    if (length < 2 || length > bytes.size() - at) {
      bad(where, str("byte ", at, ": truncated JPEG: segment of ", length, " bytes"));
    }
    const std::string_view data = bytes.substr(at + 2, length - 2);
    at += length;
    if (is_frame_header(marker)) jpeg_frame_header(header, marker, data, where, limits);
    if (marker == 0xE1 && data.starts_with(std::string_view("Exif\0\0", 6))) {
      header.info.orientation = exif_orientation(data.substr(6));
    }
    if (marker == 0xDA) {
      if (header.info.width == 0) bad(where, "damaged JPEG: scan before the frame header");
      scanned = true;
      at = skip_entropy_data(bytes, at);
    }
  }
  if (!scanned) bad(where, "JPEG without pixels");
  // Progressive files keep 2-byte coefficients, up to 4 channels, padded to 32-pixel blocks.
  const auto padded = [](int side) { return static_cast<uint64_t>(side) + 32; };
  header.unpacked_bytes = padded(header.info.width) * padded(header.info.height) * 8;
  return header;
}

PictureHeader bmp_header(std::string_view bytes, const std::string& where,
                         const PictureLimits& limits) {
  PictureHeader header;
  header.info.format = "bmp";
  if (bytes.size() < 26) bad(where, "truncated BMP header");
  const uint64_t offset = little32(bytes, 10);
  const uint32_t info_size = little32(bytes, 14);
  const bool old = info_size == 12;
  if (!old && (info_size < 40 || bytes.size() < 54)) {
    bad(where, str("BMP header of ", info_size, " bytes is not supported"));
  }
  const int64_t width = old ? little16(bytes, 18) : static_cast<int32_t>(little32(bytes, 18));
  const int64_t height = old ? little16(bytes, 20) : static_cast<int32_t>(little32(bytes, 22));
  const uint32_t bits = little16(bytes, old ? 24 : 28);
  const uint32_t compression = old ? 0 : little32(bytes, 30);
  set_size(header, width, std::abs(height), where, limits);
  if (compression != 0 && compression != 3) {
    bad(where, str("BMP compression ", compression, " is not supported: expected 0 or 3"));
  }
  if (bits != 1 && bits != 4 && bits != 8 && bits != 24 && bits != 32) {
    bad(where, str("BMP with ", bits, " bits a pixel is not supported"));
  }
  const uint64_t row = (static_cast<uint64_t>(width) * bits + 31) / 32 * 4;
  const uint64_t end = offset + row * static_cast<uint64_t>(header.info.height);
  if (end > bytes.size()) {
    bad(where, str("truncated BMP: expected ", end, " bytes, got ", bytes.size()));
  }
  header.unpacked_bytes = static_cast<uint64_t>(width) * header.info.height * 4;
  return header;
}

}  // namespace

int exif_orientation(std::string_view tiff) {
  if (tiff.size() < 8) return 1;
  const bool big = tiff.starts_with(std::string_view("MM\0*", 4));
  if (!big && !tiff.starts_with(std::string_view("II*\0", 4))) return 1;
  const auto u16 = [&](size_t i) { return big ? big16(tiff, i) : little16(tiff, i); };
  const auto u32 = [&](size_t i) { return big ? png::read_u32(tiff, i) : little32(tiff, i); };
  const size_t directory = u32(4);
  if (directory > tiff.size() - 2) return 1;
  const size_t entries = u16(directory);
  for (size_t i = 0; i < entries; ++i) {
    const size_t entry = directory + 2 + i * 12;
    if (entry + 12 > tiff.size()) return 1;
    constexpr uint32_t kOrientation = 0x0112, kShort = 3;
    if (u16(entry) != kOrientation || u16(entry + 2) != kShort) continue;
    const uint32_t value = u16(entry + 8);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

PictureHeader read_picture_header(std::string_view bytes, const std::string& where,
                                  const PictureLimits& limits) {
  if (bytes.starts_with(png::kSignature)) return png_header(bytes, where, limits);
  if (bytes.starts_with("\xFF\xD8\xFF")) return jpeg_header(bytes, where, limits);
  if (bytes.starts_with("BM")) return bmp_header(bytes, where, limits);
  bad(where, "is no picture that can be read: expected PNG, JPEG or BMP");
}

}  // namespace fovea
