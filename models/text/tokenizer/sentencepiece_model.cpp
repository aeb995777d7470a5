#include "models/text/tokenizer/sentencepiece_model.h"

#include <bit>

#include "core/check.h"
#include "models/text/tokenizer/utf8.h"

namespace fovea::models {
namespace {

// Field numbers of sentencepiece_model.proto.
constexpr uint64_t kModelPieces = 1, kModelNormalizer = 3;
constexpr uint64_t kPieceText = 1, kPieceScore = 2, kPieceType = 3;
constexpr uint64_t kNormalizerCharsmap = 2;

// Reads the fields of one message; offsets in errors are those of the whole file.
class WireReader {
 public:
  WireReader(std::string_view bytes, size_t offset, const std::string& where)
      : bytes_(bytes), offset_(offset), where_(where) {}

  // Moves to the next field; false at the end of the message.
  bool next() {
    if (at_ == bytes_.size()) return false;
    const uint64_t tag = varint();
    field = tag >> 3;
    wire_type_ = static_cast<int>(tag & 7);
    check(field != 0, "expected a field number, got 0");
    switch (wire_type_) {
      case 0:
        number = varint();
        break;
      case 1:
        take(8);
        break;
      case 2:
        take(varint());
        break;
      case 5:
        take(4);
        break;
      default:
        check(false, "wire type ", wire_type_, " is not supported");
    }
    return true;
  }
  void expect(int wire_type) const {
    check(wire_type_ == wire_type, "field ", field, ": expected wire type ", wire_type, ", got ",
          wire_type_);
  }
  WireReader message() const {
    expect(2);
    return {payload, offset_ + at_ - payload.size(), where_};
  }
  std::string text() const {
    expect(2);
    return std::string(payload);
  }
  float number_fp32() const {
    expect(5);
    uint32_t bits = 0;
    for (size_t i = 0; i < 4; ++i) {
      bits |= static_cast<uint32_t>(static_cast<unsigned char>(payload[i])) << (8 * i);
    }
    return std::bit_cast<float>(bits);
  }
  template <typename... Args>
  void check(bool condition, const Args&... reason) const {
    require(condition, ErrorCode::bad_data, where_, "byte ", offset_ + at_, ": ", reason...);
  }

  uint64_t field = 0;
  uint64_t number = 0;       // value of a varint field
  std::string_view payload;  // bytes of any other field

 private:
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      check(at_ < bytes_.size(), "the file ends inside a number");
      const auto byte = static_cast<unsigned char>(bytes_[at_++]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    check(false, "a number has more than 10 bytes");
    return 0;
  }
  void take(uint64_t size) {
    check(size <= bytes_.size() - at_, "a field of ", size, " bytes does not fit into ",
          bytes_.size() - at_);
    payload = bytes_.substr(at_, size);
    at_ += size;
  }

  std::string_view bytes_;
  size_t offset_;
  const std::string& where_;
  size_t at_ = 0;
  int wire_type_ = 0;
};

SentencepieceModel::Piece parse_piece(WireReader reader) {
  SentencepieceModel::Piece piece;
  while (reader.next()) {
    if (reader.field == kPieceText) {
      piece.text = reader.text();
      reader.check(invalid_utf8_offset(piece.text) == std::string::npos, "expected valid UTF-8");
    } else if (reader.field == kPieceScore) {
      piece.score = static_cast<double>(reader.number_fp32());
    } else if (reader.field == kPieceType) {
      reader.expect(0);
      reader.check(reader.number >= 1 && reader.number <= 6,
                   "expected a piece type from 1 to 6, got ", reader.number);
      piece.type = static_cast<SentencepieceModel::Type>(reader.number);
    }
  }
  return piece;
}

}  // namespace

SentencepieceModel parse_sentencepiece_model(std::string_view bytes, const std::string& where) {
  SentencepieceModel model;
  WireReader reader(bytes, 0, where);
  while (reader.next()) {
    if (reader.field == kModelPieces) {
      model.pieces.push_back(parse_piece(reader.message()));
    } else if (reader.field == kModelNormalizer) {
      WireReader normalizer = reader.message();
      while (normalizer.next()) {
        if (normalizer.field == kNormalizerCharsmap) model.charsmap = normalizer.text();
      }
    }
  }
  require(!model.pieces.empty(), ErrorCode::bad_data, where, "holds no pieces");
  return model;
}

}  // namespace fovea::models
