#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fovea::png {

inline constexpr std::string_view kSignature("\x89PNG\r\n\x1a\n", 8);

/// One chunk of a PNG file; views into the file's bytes.
struct Chunk {
  std::string_view type;  ///< four letters
  std::string_view data;
};

/// The chunks of a whole PNG file, IHDR first, IEND last; bytes after IEND are ignored.
///
/// where   file named in errors
/// throws  Error bad_data with the byte offset: signature, order, truncation, checksum
std::vector<Chunk> chunks(std::string_view bytes, const std::string& where);

/// A chunk as stored: length, type, data, CRC-32.
std::string encode_chunk(std::string_view type, std::string_view data);

/// Big-endian number of 4 bytes.
uint32_t read_u32(std::string_view bytes, size_t offset);

}  // namespace fovea::png
