#include "core/safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "core/check.h"
#include "core/json.h"

namespace fovea {
namespace {

struct TypeRow {
  StoredType type;
  std::string_view name;
  size_t size;
  bool floating;
};

// In the order of the enumeration.
constexpr std::array<TypeRow, 15> kTypes = {{
    {StoredType::boolean, "BOOL", 1, false},
    {StoredType::u8, "U8", 1, false},
    {StoredType::i8, "I8", 1, false},
    {StoredType::f8_e5m2, "F8_E5M2", 1, true},
    {StoredType::f8_e4m3, "F8_E4M3", 1, true},
    {StoredType::i16, "I16", 2, false},
    {StoredType::u16, "U16", 2, false},
    {StoredType::f16, "F16", 2, true},
    {StoredType::bf16, "BF16", 2, true},
    {StoredType::i32, "I32", 4, false},
    {StoredType::u32, "U32", 4, false},
    {StoredType::f32, "F32", 4, true},
    {StoredType::f64, "F64", 8, true},
    {StoredType::i64, "I64", 8, false},
    {StoredType::u64, "U64", 8, false},
}};

const TypeRow& row(StoredType type) { return kTypes[static_cast<size_t>(type)]; }

constexpr std::string_view kMetadata = "__metadata__";
constexpr size_t kPrefixBytes = 8;  // the header's length, little-endian

uint64_t decode_length(const std::array<std::byte, kPrefixBytes>& bytes) {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes.size(); ++i) value |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return value;
}

// Takes the events of nlohmann's SAX parser, which keeps its own stack and sees every key, so that
// nesting cannot exhaust ours and a name that appears twice cannot replace its first occurrence.
class HeaderReader {
 public:
  HeaderReader(std::string where, SafetensorsLimits limits)
      : where_(std::move(where)), limits_(limits) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool null() { return unexpected("null"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool number_float(double, const std::string& text) { return unexpected(text); }
  bool binary(Json::binary_t&) { return unexpected("binary data"); }
  bool number_integer(int64_t value) { return unexpected(str(value)); }

  bool number_unsigned(uint64_t value) {
    if (state_ == State::shape) {
      require_entry(header_.tensors.back().shape.size() < limits_.max_rank, "has more than ",
                    limits_.max_rank, " dimensions");
      require_entry(value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()),
                    "has a dimension of ", value);
      header_.tensors.back().shape.push_back(static_cast<int64_t>(value));
      return true;
    }
    if (state_ == State::offsets) {
      require_entry(offsets_ < 2, "data_offsets has more than 2 numbers");
      (offsets_++ == 0 ? header_.tensors.back().begin : header_.tensors.back().end) = value;
      return true;
    }
    return unexpected(str(value));
  }

  bool string(std::string& text) {
    if (state_ == State::metadata) {
      const bool fresh = header_.metadata.emplace(key_, std::move(text)).second;
      require(fresh, ErrorCode::bad_data, where_, "metadata key '", key_, "' appears twice");
      return true;
    }
    if (state_ == State::entry && key_ == "dtype") {
      const std::optional<StoredType> type = stored_type_from_name(text);
      require_entry(type.has_value(), "dtype '", printable(text, 40), "' is not supported");
      header_.tensors.back().type = *type;
      return true;
    }
    return unexpected(str("the string '", printable(text, 40), "'"));
  }

  bool key(std::string& text) {
    key_ = std::move(text);
    if (state_ == State::entry) {
      const unsigned bit = key_ == "dtype"          ? 1
                           : key_ == "shape"        ? 2
                           : key_ == "data_offsets" ? 4
                                                    : 0;
      require_entry(bit != 0, "unknown field '", printable(key_, 40), "'");
      require_entry((fields_ & bit) == 0, "field '", key_, "' appears twice");
      fields_ |= bit;
    }
    return true;
  }

  bool start_object(size_t) {
    if (state_ == State::start) {
      state_ = State::top;
    } else if (state_ == State::top && key_ == kMetadata) {
      require(!saw_metadata_, ErrorCode::bad_data, where_, "'__metadata__' appears twice");
      saw_metadata_ = true;
      state_ = State::metadata;
    } else if (state_ == State::top) {
      require(header_.tensors.size() < limits_.max_tensors, ErrorCode::resource, where_,
              "has more than ", limits_.max_tensors, " tensors");
      header_.tensors.emplace_back().name = key_;
      fields_ = 0;
      state_ = State::entry;
    } else {
      return unexpected("an object");
    }
    return true;
  }

  bool end_object() {
    if (state_ == State::entry) {
      require_entry(fields_ == 7, "expected dtype, shape and data_offsets");
    }
    state_ = state_ == State::top ? State::done : State::top;
    return true;
  }

  bool start_array(size_t) {
    if (state_ == State::entry && key_ == "shape") {
      state_ = State::shape;
    } else if (state_ == State::entry && key_ == "data_offsets") {
      state_ = State::offsets;
      offsets_ = 0;
    } else {
      return unexpected("an array");
    }
    return true;
  }

  bool end_array() {
    require_entry(state_ != State::offsets || offsets_ == 2, "data_offsets has ", offsets_,
                  " numbers, expected 2");
    state_ = State::entry;
    return true;
  }

  bool parse_error(size_t position, const std::string&, const Json::exception& error) {
    // Numbers beyond the range of a double come as out_of_range (406).
    throw Error(ErrorCode::bad_data, where_,
                str("byte ", kPrefixBytes + position, ": the header is malformed JSON",
                    error.id == 406 ? " (number out of range)" : ""));
  }

 private:
  enum class State { start, top, metadata, entry, shape, offsets, done };

  // For the tensor at hand; the reason is built only when `holds` is false.
  template <typename... Args>
  void require_entry(bool holds, const Args&... reason) const {
    if (!holds) throw Error(ErrorCode::bad_data, where_, str(context(), reason...));
  }

  std::string context() const {
    return str("tensor '", printable(header_.tensors.back().name, 200), "': ");
  }

  bool unexpected(const std::string& what) {
    const std::string got = printable(what, 60);
    switch (state_) {
      case State::entry:
      case State::shape:
      case State::offsets:
        throw Error(
            ErrorCode::bad_data, where_,
            str(context(), key_, ": expected ",
                key_ == "dtype" ? "a dtype name" : "an array of integers >= 0", ", got ", got));
      case State::metadata:
        throw Error(ErrorCode::bad_data, where_,
                    str("metadata key '", printable(key_, 200), "': expected a string, got ", got));
      default:
        throw Error(
            ErrorCode::bad_data, where_,
            str("header", state_ == State::top ? " entry '" + printable(key_, 200) + "'" : "",
                ": expected an object, got ", got));
    }
  }

  std::string where_;
  SafetensorsLimits limits_;
  SafetensorsHeader header_;
  State state_ = State::start;
  std::string key_;
  unsigned fields_ = 0;
  int offsets_ = 0;
  bool saw_metadata_ = false;
};

// Bytes of a tensor; nothing when they do not fit in 63 bits.
std::optional<uint64_t> byte_size(const std::vector<int64_t>& shape, StoredType type) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  int64_t bytes = static_cast<int64_t>(row(type).size);
  for (const int64_t size : shape) {
    if (__builtin_mul_overflow(bytes, size, &bytes)) return std::nullopt;
  }
  return static_cast<uint64_t>(bytes);
}

void check_names(const std::vector<StoredTensor>& tensors, const std::string& where,
                 ErrorCode code) {
  std::vector<std::string_view> names;
  names.reserve(tensors.size());
  for (const StoredTensor& tensor : tensors) names.push_back(tensor.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  require(twice == names.end(), code, where, "tensor '",
          twice == names.end() ? "" : printable(*twice, 200), "' appears twice");
}

// Sorts by extent and checks that the extents are the sizes and tile the data.
void check_extents(std::vector<StoredTensor>& tensors, uint64_t data_bytes,
                   const std::string& where) {
  std::stable_sort(tensors.begin(), tensors.end(),
                   [](const StoredTensor& a, const StoredTensor& b) {
                     return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
                   });
  uint64_t expected_begin = 0;
  for (const StoredTensor& tensor : tensors) {
    const std::optional<uint64_t> size = byte_size(tensor.shape, tensor.type);
    const uint64_t extent = tensor.end - tensor.begin;
    const auto refuse_unless = [&](bool holds, const auto&... reason) {
      if (holds) return;
      throw Error(ErrorCode::bad_data, where,
                  str("tensor '", printable(tensor.name, 200), "': ", reason...));
    };
    refuse_unless(tensor.begin <= tensor.end && tensor.end <= data_bytes, "bytes ", tensor.begin,
                  " to ", tensor.end, " are not within the file's ", data_bytes,
                  " bytes of data (truncated file?)");
    refuse_unless(size.has_value(), "its shape overflows");
    refuse_unless(*size == extent, "its shape and dtype need ", *size,
                  " bytes, its data_offsets give ", extent);
    refuse_unless(
        tensor.begin == expected_begin, "begins at data byte ", tensor.begin,
        tensor.begin < expected_begin ? ", overlapping the one before" : ", leaving a gap",
        ", expected ", expected_begin);
    expected_begin = tensor.end;
  }
  require(expected_begin == data_bytes, ErrorCode::bad_data, where, "has ", data_bytes,
          " bytes of data, its tensors need ", expected_begin);
}

}  // namespace

size_t stored_type_size(StoredType type) { return row(type).size; }
std::string_view stored_type_name(StoredType type) { return row(type).name; }
bool is_floating(StoredType type) { return row(type).floating; }

std::optional<StoredType> stored_type_from_name(std::string_view name) {
  for (const TypeRow& entry : kTypes) {
    if (entry.name == name) return entry.type;
  }
  return std::nullopt;
}

int64_t StoredTensor::numel() const { return static_cast<int64_t>((end - begin) / row(type).size); }

SafetensorsHeader parse_safetensors_header(std::string_view text, uint64_t data_bytes,
                                           const std::string& where, SafetensorsLimits limits) {
  require(text.size() <= limits.max_header_bytes, ErrorCode::resource, where, "its header has ",
          text.size(), " bytes, at most ", limits.max_header_bytes, " are read");
  require(!text.empty() && text.front() == '{', ErrorCode::bad_data, where, "byte ", kPrefixBytes,
          ": the header does not begin with '{'");
  // nlohmann's lexer takes a zero byte for the end of the text.
  const size_t zero = text.find('\0');
  require(zero == std::string_view::npos, ErrorCode::bad_data, where, "byte ", kPrefixBytes + zero,
          ": the header is malformed JSON (a zero byte)");
  HeaderReader reader(where, limits);
  Json::sax_parse(text.begin(), text.end(), &reader);
  SafetensorsHeader header = reader.take();
  check_names(header.tensors, where, ErrorCode::bad_data);
  check_extents(header.tensors, data_bytes, where);
  return header;
}

std::string safetensors_preamble(SafetensorsHeader& header) {
  const std::string where = "safetensors header";
  check_names(header.tensors, where, ErrorCode::usage);
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const StoredTensor& a, const StoredTensor& b) {
              return a.type != b.type ? a.type > b.type : a.name < b.name;
            });
  const auto quoted = [&](const std::string& text) {
    try {
      return Json(text).dump();
    } catch (const Json::exception&) {
      throw Error(ErrorCode::usage, where, str("'", printable(text, 200), "' is no valid UTF-8"));
    }
  };
  std::string json = "{";
  if (!header.metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : header.metadata)
      json += quoted(key) + ":" + quoted(value) + ",";
    json.back() = '}';
    json += ",";
  }
  uint64_t offset = 0;
  for (StoredTensor& tensor : header.tensors) {
    require(tensor.name != kMetadata, ErrorCode::usage, where,
            "the tensor name '__metadata__' is reserved");
    const std::optional<uint64_t> size = byte_size(tensor.shape, tensor.type);
    require(size.has_value(), ErrorCode::usage, where, "tensor '", tensor.name,
            "': its shape overflows");
    tensor.begin = offset;
    tensor.end = offset += *size;
    json += quoted(tensor.name) + ":{\"dtype\":\"" + std::string(row(tensor.type).name) +
            "\",\"shape\":" + Json(tensor.shape).dump() + ",\"data_offsets\":[" +
            std::to_string(tensor.begin) + "," + std::to_string(tensor.end) + "]},";
  }
  if (json.back() == ',') json.pop_back();
  json += "}";
  json.resize((json.size() + 7) / 8 * 8, ' ');
  std::string out;
  for (size_t i = 0; i < kPrefixBytes; ++i) out += static_cast<char>(json.size() >> (8 * i));
  return out + json;
}

SafetensorsFile::SafetensorsFile(fs::path path, SafetensorsLimits limits) : path_(std::move(path)) {
  check_regular_file(path_);
  // O_NONBLOCK: a pipe put in the file's place after the check must not make open wait.
  descriptor_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor_ < 0) {
    const bool limit = errno == EMFILE || errno == ENFILE || errno == ENOMEM;
    throw Error(limit ? ErrorCode::resource : ErrorCode::bad_data, path_.string(),
                str("cannot open: ", std::strerror(errno)));
  }
  try {
    read_header(limits);
  } catch (...) {
    ::close(descriptor_);
    throw;
  }
}

void SafetensorsFile::read_header(SafetensorsLimits limits) {
  struct stat info {};
  require(::fstat(descriptor_, &info) == 0 && S_ISREG(info.st_mode), ErrorCode::bad_data,
          path_.string(), "is not a regular file");
  const uint64_t file_bytes = static_cast<uint64_t>(info.st_size);
  require(file_bytes >= kPrefixBytes + 2, ErrorCode::bad_data, path_.string(), "has ", file_bytes,
          " bytes, too few for a safetensors file");
  std::array<std::byte, kPrefixBytes> prefix;
  read_at(0, prefix, "the header's length");
  const uint64_t header_bytes = decode_length(prefix);
  // First what the file holds: a header length that lies about it is bad data, not a size budget.
  require(header_bytes <= file_bytes - kPrefixBytes, ErrorCode::bad_data, path_.string(),
          "byte 0: says its header has ", header_bytes, " bytes, the file has ", file_bytes,
          " (truncated, or no safetensors file)");
  require(header_bytes <= limits.max_header_bytes, ErrorCode::resource, path_.string(),
          "its header has ", header_bytes, " bytes, at most ", limits.max_header_bytes,
          " are read");
  std::string text(header_bytes, '\0');
  read_at(kPrefixBytes, std::as_writable_bytes(std::span(text)), "the header");
  data_start_ = kPrefixBytes + header_bytes;
  data_bytes_ = file_bytes - data_start_;
  header_ = parse_safetensors_header(text, data_bytes_, path_.string(), limits);
  by_name_.reserve(header_.tensors.size());
  for (size_t i = 0; i < header_.tensors.size(); ++i) by_name_.emplace(header_.tensors[i].name, i);
}

SafetensorsFile::~SafetensorsFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

SafetensorsFile::SafetensorsFile(SafetensorsFile&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      data_start_(other.data_start_),
      data_bytes_(other.data_bytes_),
      header_(std::move(other.header_)),
      by_name_(std::move(other.by_name_)) {}

const StoredTensor* SafetensorsFile::find(const std::string& name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &header_.tensors[found->second];
}

void SafetensorsFile::read(const StoredTensor& tensor, uint64_t offset,
                           std::span<std::byte> out) const {
  FOVEA_ASSERT(offset <= tensor.end - tensor.begin &&
               out.size() <= tensor.end - tensor.begin - offset);
  read_at(data_start_ + tensor.begin + offset, out,
          str("tensor '", printable(tensor.name, 200), "'"));
}

void SafetensorsFile::read_at(uint64_t position, std::span<std::byte> out,
                              const std::string& what) const {
  while (!out.empty()) {
    const ssize_t got = ::pread(descriptor_, out.data(), out.size(), static_cast<off_t>(position));
    if (got < 0 && errno == EINTR) continue;
    require(got >= 0, ErrorCode::bad_data, path_.string(), "byte ", position, ": cannot read ",
            what, ": ", std::strerror(errno));
    require(got > 0, ErrorCode::bad_data, path_.string(), "byte ", position,
            ": the file ends within ", what);
    position += static_cast<uint64_t>(got);
    out = out.subspan(static_cast<size_t>(got));
  }
}

}  // namespace fovea
