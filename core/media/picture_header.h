#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/media/picture.h"

namespace fovea {

/// What has to be known before the pixels of a picture file are decoded.
struct PictureHeader {
  PictureInfo info;
  uint64_t unpacked_bytes = 0;  ///< bound on what the compressed samples unpack to
};

/// Walks the structure of a PNG, JPEG or BMP file from end to end without decoding samples.
///
/// throws  Error bad_data for a truncated, damaged or unsupported file, resource above `limits`
PictureHeader read_picture_header(std::string_view bytes, const std::string& where,
                                  const PictureLimits& limits);

/// EXIF orientation of a TIFF block ("II*" or "MM*" first); 1 where it says none, or nonsense.
int exif_orientation(std::string_view tiff);

}  // namespace fovea
