#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "core/file.h"

namespace fovea {

/// Element types of the safetensors format that are read and written, in the order that Python's
/// writer gives them.
enum class StoredType : uint8_t {
  boolean,
  u8,
  i8,
  f8_e5m2,
  f8_e4m3,
  i16,
  u16,
  f16,
  bf16,
  i32,
  u32,
  f32,
  f64,
  i64,
  u64,
};

size_t stored_type_size(StoredType type);            ///< bytes of one element
std::string_view stored_type_name(StoredType type);  ///< as in the file: "F32", "BF16", ...
bool is_floating(StoredType type);
/// The type of that name, or nothing.
std::optional<StoredType> stored_type_from_name(std::string_view name);

/// One tensor of a safetensors file: row-major, little-endian elements.
struct StoredTensor {
  std::string name;
  StoredType type = StoredType::f32;
  std::vector<int64_t> shape;  ///< empty = one element; a size may be 0
  uint64_t begin = 0;          ///< first byte, counted from the start of the data
  uint64_t end = 0;            ///< one past the last byte; end - begin = numel() * element size

  int64_t numel() const;
};

/// Bounds on a header, checked before anything is allocated for it.
struct SafetensorsLimits {
  uint64_t max_header_bytes = 100'000'000;
  size_t max_tensors = 1'000'000;
  size_t max_rank = 64;
};

/// What the header of a safetensors file says.
struct SafetensorsHeader {
  std::vector<StoredTensor> tensors;            ///< in the order of their bytes
  std::map<std::string, std::string> metadata;  ///< "__metadata__"
};

/// Parses and checks the JSON text of a header whose file has `data_bytes` bytes after it.
///
/// Accepted means: names are unique, each tensor's extent is its size, and the extents tile
/// [0, data_bytes) without gap or overlap.
///
/// where   file named in errors
/// throws  Error bad_data naming the tensor or the byte offset; resource above a limit
/// source  the format description in the README of the safetensors project
SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes,
                                           const std::string& where, SafetensorsLimits limits = {});

/// The bytes that precede the data of a file with these tensors: 8 bytes of length, the JSON, and
/// spaces up to a multiple of 8. Sets `begin` and `end` of each tensor and puts them in the order
/// in which their bytes have to follow: the last `StoredType` first, so that wide elements stay
/// aligned, then by name. Python's writer gives the same bytes.
///
/// throws  Error usage for a name that is no valid UTF-8, is reserved or appears twice
std::string safetensors_preamble(SafetensorsHeader& header);

/// An open safetensors file. The header is read and checked at once, tensor bytes when asked for.
///
/// Bytes are read with positioned reads and never through a mapping: a mapped file that somebody
/// shortens ends the process with SIGBUS, a read just comes back short. Safe to use from several
/// threads.
class SafetensorsFile {
 public:
  /// throws  Error bad_data when the file is missing, no regular file, truncated or malformed;
  ///         resource above a limit or when no descriptor is left
  explicit SafetensorsFile(fs::path path, SafetensorsLimits limits = {});
  ~SafetensorsFile();
  SafetensorsFile(SafetensorsFile&& other) noexcept;
  SafetensorsFile& operator=(SafetensorsFile&&) = delete;

  const fs::path& path() const { return path_; }
  const std::vector<StoredTensor>& tensors() const { return header_.tensors; }
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  uint64_t data_bytes() const { return data_bytes_; }
  /// The tensor `name`, or nullptr.
  const StoredTensor* find(const std::string& name) const;

  /// Fills `out` with the tensor's bytes from `offset` on.
  ///
  /// throws  Error bad_data when the file has become shorter or cannot be read
  void read(const StoredTensor& tensor, uint64_t offset, std::span<std::byte> out) const;

 private:
  void read_at(uint64_t position, std::span<std::byte> out, const std::string& what) const;
  void read_header(SafetensorsLimits limits);

  fs::path path_;
  int descriptor_ = -1;
  uint64_t data_start_ = 0;
  uint64_t data_bytes_ = 0;
  SafetensorsHeader header_;
  std::unordered_map<std::string_view, size_t> by_name_;
};

}  // namespace fovea
