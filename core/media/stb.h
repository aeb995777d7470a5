#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

// The few functions that the project takes from stb_image and stb_image_write.
namespace fovea::stb {

/// Decodes a picture file to RGB. No single allocation inside passes `max_allocation` bytes, so
/// that compressed data that unpacks without end stops.
///
/// throws  Error bad_data with the library's reason
std::vector<uint8_t> decode_rgb(std::string_view bytes, const std::string& where, int width,
                                int height, uint64_t max_allocation);

/// Unpacks a zlib stream of a PNG text. throws  Error bad_data, resource above `max_bytes`
std::string inflate(std::string_view bytes, const std::string& where, uint64_t max_bytes);

/// A PNG file: signature, IHDR, IDAT, IEND.
std::string encode_png(const uint8_t* rgb, int width, int height);

}  // namespace fovea::stb
