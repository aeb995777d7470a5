#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "core/file.h"

namespace fovea {

/// A picture in memory: rows from the top, interleaved red, green, blue, sRGB bytes.
struct Picture {
  int width = 0;
  int height = 0;
  std::vector<uint8_t> rgb;  ///< [height, width, 3]

  static constexpr int channels = 3;
};

/// A black picture; the size has been checked.
Picture make_picture(int width, int height);

/// Budgets that are checked from the header, before anything is decoded.
struct PictureLimits {
  int max_side = 16384;           ///< pixels
  int64_t max_pixels = 64 << 20;  ///< 64 Mpx
  uint64_t max_file_bytes = 256u << 20;
};

/// Throws Error usage for a side below 1, resource above `limits`.
void check_picture_size(int64_t width, int64_t height, std::string_view where,
                        const PictureLimits& limits = {});

/// What a picture file says about itself.
struct PictureInfo {
  std::string format;  ///< "png", "jpeg" or "bmp"
  int width = 0;       ///< as stored, before any orientation
  int height = 0;
  int orientation = 1;  ///< EXIF tag 0x0112, 1 to 8; 1 where there is none
};

/// Checks the file's structure and sizes without decoding it; throws as `read_picture`.
PictureInfo probe_picture(const fs::path& path, const PictureLimits& limits = {});

/// Decodes PNG, JPEG or BMP as PIL's `Image.open(path).convert("RGB")` does: alpha is dropped,
/// palettes and grey are expanded, 16-bit channels keep their high byte, and EXIF orientation is
/// not applied (see `oriented`).
///
/// throws   Error bad_data for a truncated, damaged or unknown file, resource above `limits`
/// differs  JPEG: samples may be a few levels off PIL's, whose library rounds and interpolates
///          colour in its own way. Refused, though PIL reads them: other formats, JPEG with
///          arithmetic coding or 12 bits, BMP with run lengths or 16 bits, 16-bit grey PNG (PIL
///          turns nearly all of it white), PNG without its end chunk.
Picture read_picture(const fs::path& path, const PictureLimits& limits = {});

/// As `read_picture`, from memory; `where` names the source in errors.
Picture decode_picture(std::string_view bytes, const std::string& where,
                       const PictureLimits& limits = {});

/// Turns and mirrors a picture as EXIF orientation 1 to 8 asks, like PIL's
/// `ImageOps.exif_transpose` (which diffusers' `load_image` calls).
Picture oriented(const Picture& picture, int orientation);

/// Texts of a PNG by keyword, UTF-8.
using PngText = std::map<std::string, std::string>;

/// A PNG file, 8-bit RGB. Equal input gives equal bytes.
///
/// rgb      [height, width, 3]
/// text     keyword (1 to 79 printable ASCII characters) to UTF-8 text, put before the pixels: a
///          tEXt chunk where the text is ASCII, else iTXt
/// throws   Error usage for a keyword or text that PNG cannot hold
std::string encode_png(const uint8_t* rgb, int width, int height, const PngText& text = {});
std::string encode_png(const Picture& picture, const PngText& text = {});

/// Texts of all tEXt, zTXt and iTXt chunks; of equal keywords the first.
///
/// throws  Error bad_data when the file is no whole PNG, resource when one text is above 16 MiB
PngText read_png_text(const fs::path& path);

}  // namespace fovea
