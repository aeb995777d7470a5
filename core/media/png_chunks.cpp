#include "core/media/png_chunks.h"

#include <array>

#include "core/check.h"

namespace fovea::png {
namespace {

constexpr std::array<uint32_t, 256> make_crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ (value & 1 ? 0xEDB88320u : 0u);
    table[i] = value;
  }
  return table;
}

constexpr std::array<uint32_t, 256> kCrcTable = make_crc_table();

uint32_t crc32(std::string_view bytes) {
  uint32_t value = 0xFFFFFFFFu;
  for (const unsigned char c : bytes) value = kCrcTable[(value ^ c) & 0xFF] ^ (value >> 8);
  return ~value;
}

std::string encode_u32(uint32_t value) {
  std::string bytes;
  for (int shift = 24; shift >= 0; shift -= 8) bytes += static_cast<char>(value >> shift & 0xFF);
  return bytes;
}

}  // namespace

uint32_t read_u32(std::string_view bytes, size_t offset) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[offset + i]);
  return value;
}

std::vector<Chunk> chunks(std::string_view bytes, const std::string& where) {
  require(bytes.starts_with(kSignature), ErrorCode::bad_data, where, "is no PNG file");
  std::vector<Chunk> found;
  size_t at = kSignature.size();
  while (found.empty() || found.back().type != "IEND") {
    require(bytes.size() - at >= 12, ErrorCode::bad_data, where, "byte ", at,
            ": truncated PNG: expected a chunk, got the end of the file");
    const size_t length = read_u32(bytes, at);
    require(length <= bytes.size() - at - 12, ErrorCode::bad_data, where, "byte ", at,
            ": truncated PNG: expected a chunk of ", length, " bytes, got ",
            bytes.size() - at - 12);
    const std::string_view checked = bytes.substr(at + 4, length + 4);
    require(crc32(checked) == read_u32(bytes, at + 8 + length), ErrorCode::bad_data, where, "byte ",
            at, ": damaged PNG: checksum of chunk '", checked.substr(0, 4), "' is wrong");
    found.push_back({checked.substr(0, 4), checked.substr(4)});
    require(found.size() > 1 || (found[0].type == "IHDR" && length == 13), ErrorCode::bad_data,
            where, "byte ", at, ": expected the chunk IHDR, got '", found[0].type, "'");
    at += 12 + length;
  }
  return found;
}

std::string encode_chunk(std::string_view type, std::string_view data) {
  std::string checked(type);
  checked += data;
  return encode_u32(static_cast<uint32_t>(data.size())) + checked + encode_u32(crc32(checked));
}

}  // namespace fovea::png
