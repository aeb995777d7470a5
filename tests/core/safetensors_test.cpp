#include "core/safetensors.h"

#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "tests/support/files.h"

namespace fovea {
namespace {

using test::expect_error;
using test::TemporaryFolder;
using test::write_bytes;

const std::string kTwo = R"({"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
                         R"("b":{"dtype":"U8","shape":[5],"data_offsets":[24,29]}})";

std::string file_bytes(const std::string& header, const std::string& data) {
  std::string out;
  for (int i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i));
  return out + header + data;
}

SafetensorsHeader parse(const std::string& text, uint64_t data_bytes) {
  return parse_safetensors_header(text, data_bytes, "x.safetensors");
}

void refused(const std::string& text, uint64_t data_bytes, const std::string& reason) {
  SCOPED_TRACE(text.substr(0, 200));
  expect_error(ErrorCode::bad_data, reason, [&] { parse(text, data_bytes); });
}

// {"a": {dtype, shape, data_offsets}} from the texts of the three values.
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return "{\"a\":{\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets +
         "}}";
}

TEST(SafetensorsHeader, ReadsTensorsAndMetadata) {
  const SafetensorsHeader header =
      parse(R"({"__metadata__":{"format":"pt","k":"\u00fc"},)"
            R"("z":{"data_offsets":[8,8],"shape":[0,9223372036854775807],"dtype":"BF16"},)"
            R"("s":{"dtype":"F64","shape":[],"data_offsets":[0,8]}}   )",
            8);
  ASSERT_EQ(header.tensors.size(), 2u);
  EXPECT_EQ(header.tensors[0].name, "s");
  EXPECT_EQ(header.tensors[0].type, StoredType::f64);
  EXPECT_EQ(header.tensors[0].numel(), 1);
  EXPECT_EQ(header.tensors[1].numel(), 0);
  EXPECT_EQ(header.metadata.at("format"), "pt");
  EXPECT_EQ(header.metadata.at("k"), "ü");
  EXPECT_TRUE(parse("{}", 0).tensors.empty());
}

TEST(SafetensorsHeader, KnowsEveryType) {
  for (int i = 0; i <= static_cast<int>(StoredType::u64); ++i) {
    const StoredType type = static_cast<StoredType>(i);
    const std::string name(stored_type_name(type));
    EXPECT_EQ(stored_type_from_name(name), type);
    const uint64_t bytes = 3 * stored_type_size(type);
    EXPECT_EQ(parse(one("\"" + name + "\"", "[3]", "[0," + std::to_string(bytes) + "]"), bytes)
                  .tensors[0]
                  .type,
              type);
  }
}

TEST(SafetensorsHeader, RefusesExtentsThatDoNotTileTheData) {
  EXPECT_EQ(parse(kTwo, 29).tensors.size(), 2u);
  refused(kTwo, 28, "tensor 'b': bytes 24 to 29 are not within the file's 28 bytes");
  refused(kTwo, 30, "has 30 bytes of data, its tensors need 29");
  refused("{}", 1, "has 1 bytes of data, its tensors need 0");
  const auto pair = [](const std::string& first, const std::string& second) {
    return "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + first +
           "},\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":" + second + "}}";
  };
  refused(pair("[0,4]", "[3,7]"), 8, "'b': begins at data byte 3, overlapping the one before");
  refused(pair("[0,4]", "[0,4]"), 8,
          "begins at data byte 0, overlapping the one before, expected 4");
  refused(pair("[0,4]", "[5,9]"), 9, "'b': begins at data byte 5, leaving a gap, expected 4");
  refused(pair("[4,8]", "[8,12]"), 12, "'a': begins at data byte 4, leaving a gap, expected 0");
  refused(pair("[4,0]", "[4,8]"), 8, "'a': bytes 4 to 0 are not within");
  refused(pair("[0,4]", "[18446744073709551612,18446744073709551615]"), 8, "are not within");
  refused(one("\"U8\"", "[4]", "[0,5]"), 5, "need 4 bytes, its data_offsets give 5");
  refused(one("\"F16\"", "[4]", "[0,4]"), 4, "need 8 bytes, its data_offsets give 4");
  refused(one("\"U8\"", "[0]", "[0,1]"), 1, "need 0 bytes, its data_offsets give 1");
}

TEST(SafetensorsHeader, RefusesShapesThatOverflow) {
  refused(one("\"F32\"", "[4611686018427387904]", "[0,0]"), 0, "its shape overflows");
  refused(one("\"U8\"", "[4294967296,4294967296]", "[0,0]"), 0, "its shape overflows");
  refused(one("\"U8\"", "[2,9223372036854775807]", "[0,0]"), 0, "its shape overflows");
  refused(one("\"U8\"", "[9223372036854775808]", "[0,0]"), 0, "dimension of 9223372036854775808");
  refused(one("\"U8\"", "[100000000000000000000]", "[0,0]"), 0,
          "shape: expected an array of integers");
  refused(one("\"U8\"", "[1e400]", "[0,0]"), 0, "number out of range");
  std::string many = "[1";
  for (int i = 0; i < 64; ++i) many += ",1";
  refused(one("\"U8\"", many + "]", "[0,1]"), 1, "more than 64 dimensions");
}

TEST(SafetensorsHeader, RefusesWrongFields) {
  refused(one("\"F31\"", "[]", "[0,4]"), 4, "tensor 'a': dtype 'F31' is not supported");
  refused(one("\"f32\"", "[]", "[0,4]"), 4, "dtype 'f32' is not supported");
  refused(one("32", "[]", "[0,4]"), 4, "dtype: expected a dtype name, got 32");
  refused(one("\"F32\"", "[-1]", "[0,4]"), 4, "shape: expected an array of integers >= 0, got -1");
  refused(one("\"F32\"", "[1.0]", "[0,4]"), 4, "got 1.0");
  refused(one("\"F32\"", "[true]", "[0,4]"), 4, "got a boolean");
  refused(one("\"F32\"", "[\"1\"]", "[0,4]"), 4, "got the string '1'");
  refused(one("\"F32\"", "[[1]]", "[0,4]"), 4, "got an array");
  refused(one("\"F32\"", "null", "[0,4]"), 4, "got null");
  refused(one("\"F32\"", "{}", "[0,4]"), 4, "got an object");
  refused(one("\"F32\"", "[]", "[0]"), 4, "data_offsets has 1 numbers, expected 2");
  refused(one("\"F32\"", "[]", "[0,4,4]"), 4, "data_offsets has more than 2 numbers");
  refused(one("\"F32\"", "[]", "[-4,0]"), 4,
          "data_offsets: expected an array of integers >= 0, got -4");
  refused(one("\"F32\"", "[]", "4"), 4, "got 4");
  refused(R"({"a":{"dtype":"F32","shape":[]}})", 4, "expected dtype, shape and data_offsets");
  refused(R"({"a":{}})", 4, "expected dtype, shape and data_offsets");
  refused(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}})", 4, "unknown field 'x'");
  refused(R"({"a":1})", 4, "header entry 'a': expected an object, got 1");
  refused(R"({"a":[]})", 4, "header entry 'a': expected an object, got an array");
  refused(R"({"__metadata__":{"k":1}})", 0, "metadata key 'k': expected a string, got 1");
  refused(R"({"__metadata__":{"k":{}}})", 0, "metadata key 'k': expected a string, got an object");
  refused(R"({"__metadata__":"k"})", 0, "expected an object, got the string 'k'");
}

TEST(SafetensorsHeader, RefusesWhatAppearsTwice) {
  const std::string entry = R"({"dtype":"U8","shape":[0],"data_offsets":[0,0]})";
  refused("{\"a\":" + entry + ",\"a\":" + entry + "}", 0, "tensor 'a' appears twice");
  refused("{\"a\":" + entry + ",\"b\":" + entry + ",\"\\u0061\":" + entry + "}", 0,
          "tensor 'a' appears twice");
  refused(R"({"a":{"dtype":"U8","dtype":"U8","shape":[0],"data_offsets":[0,0]}})", 0,
          "field 'dtype' appears twice");
  refused(R"({"__metadata__":{},"__metadata__":{}})", 0, "'__metadata__' appears twice");
  refused(R"({"__metadata__":{"k":"1","k":"2"}})", 0, "metadata key 'k' appears twice");
}

TEST(SafetensorsHeader, RefusesWhatIsNoJsonObject) {
  for (const char* text : {"", "[]", " {}", "null", "1", "\xef\xbb\xbf{}"}) {
    refused(text, 0, "the header does not begin with '{'");
  }
  for (const char* text :
       {"{", "{}}", "{} x", "{\"a\"", "{a:1}", "{\"a\":NaN}", "{\"\xff\":1}",
        "{\"\xed\xa0\x80\":1}", "{\"\\ud800\":1}", "{\"a\nb\":1}", "{/**/}", "{,}"}) {
    refused(text, 0, "the header is malformed JSON");
  }
  refused(std::string("{}\0", 3), 0, "the header is malformed JSON");
  refused("{\"\x1b[31m\\u001b\":1}", 0, "malformed");
  // Nesting that would exhaust the stack of a recursive parser.
  std::string deep = "{\"a\":";
  for (int i = 0; i < 1'000'000; ++i) deep += "{\"a\":";
  refused(deep, 0, "unknown field 'a'");
  refused("{\"a\":" + std::string(1'000'000, '['), 0, "expected an object, got an array");
}

TEST(SafetensorsHeader, KeepsItsLimits) {
  expect_error(ErrorCode::resource, "more than 1 tensors",
               [] { parse_safetensors_header(kTwo, 29, "x", {.max_tensors = 1}); });
  expect_error(ErrorCode::resource, "at most 10 are read",
               [] { parse_safetensors_header(kTwo, 29, "x", {.max_header_bytes = 10}); });
}

TEST(SafetensorsFile, RefusesHeaderLengthsThatLie) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "x.safetensors";
  const std::string good = file_bytes(kTwo, std::string(29, 'd'));
  const auto with_length = [&](uint64_t length) {
    std::string bytes = good;
    for (int i = 0; i < 8; ++i) bytes[i] = static_cast<char>(length >> (8 * i));
    write_bytes(path, bytes);
  };
  const auto open = [&] { SafetensorsFile file(path); };
  with_length(kTwo.size());
  EXPECT_NO_THROW(open());
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1}, uint64_t{kTwo.size() - 1}, uint64_t{kTwo.size() + 1},
        good.size() - 8, good.size() - 7, good.size(), uint64_t{100'000'001}, uint64_t{1} << 31,
        uint64_t{1} << 32, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7}) {
    with_length(length);
    expect_error(ErrorCode::bad_data, "x.safetensors", open);
  }
  // A header of 100,000,001 bytes that is really there (as a hole in the file).
  with_length(100'000'001);
  fs::resize_file(path, 100'000'100);
  expect_error(ErrorCode::resource, "at most 100000000 are read", open);
}

TEST(SafetensorsFile, RefusesEveryTruncation) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "x.safetensors";
  const std::string good = file_bytes(kTwo, std::string(29, 'd'));
  for (size_t size = 0; size < good.size(); ++size) {
    write_bytes(path, good.substr(0, size));
    expect_error(ErrorCode::bad_data, "x.safetensors", [&] { SafetensorsFile file(path); });
  }
  write_bytes(path, good + "x");
  expect_error(ErrorCode::bad_data, "has 30 bytes of data", [&] { SafetensorsFile file(path); });
}

TEST(SafetensorsFile, RefusesWhatIsNoRegularFile) {
  const TemporaryFolder folder;
  expect_error(ErrorCode::bad_data, "no such file",
               [&] { SafetensorsFile file(folder.path / "none"); });
  expect_error(ErrorCode::bad_data, "is a folder", [&] { SafetensorsFile file(folder.path); });
  const fs::path pipe = folder.path / "pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  expect_error(ErrorCode::bad_data, "not a regular file", [&] { SafetensorsFile file(pipe); });
  expect_error(ErrorCode::bad_data, "not a regular file",
               [] { SafetensorsFile file("/dev/zero"); });
  fs::create_symlink(folder.path / "none", folder.path / "link");
  expect_error(ErrorCode::bad_data, "no such file",
               [&] { SafetensorsFile file(folder.path / "link"); });
}

TEST(SafetensorsFile, SurvivesTruncationAfterItWasOpened) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "x.safetensors";
  write_bytes(path,
              file_bytes(one("\"U8\"", "[1000000]", "[0,1000000]"), std::string(1'000'000, 'd')));
  const SafetensorsFile file(path);
  const StoredTensor& tensor = *file.find("a");
  std::vector<std::byte> bytes(1'000'000);
  EXPECT_NO_THROW(file.read(tensor, 0, bytes));
  EXPECT_EQ(bytes.back(), std::byte{'d'});
  for (const uint64_t size : {uint64_t{500'000}, uint64_t{4096}, uint64_t{20}, uint64_t{0}}) {
    fs::resize_file(path, size);
    expect_error(ErrorCode::bad_data, "the file ends within tensor 'a'",
                 [&] { file.read(tensor, 0, bytes); });
  }
}

TEST(SafetensorsFile, ReadsPartsAndMoves) {
  const TemporaryFolder folder;
  write_bytes(folder.path / "x", file_bytes(kTwo, "000011112222333344445555ABCDE"));
  SafetensorsFile first(folder.path / "x");
  const SafetensorsFile file = std::move(first);
  std::array<std::byte, 3> part;
  file.read(*file.find("b"), 1, part);
  EXPECT_EQ(std::memcmp(part.data(), "BCD", 3), 0);
  EXPECT_EQ(file.find("c"), nullptr);
  EXPECT_EQ(file.data_bytes(), 29u);
}

TEST(SafetensorsFile, SaysWhenNoDescriptorIsLeft) {
  const TemporaryFolder folder;
  write_bytes(folder.path / "x", file_bytes("{}", ""));
  rlimit limit{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &limit), 0);
  const rlimit none{0, limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  expect_error(ErrorCode::resource, "cannot open",
               [&] { SafetensorsFile file(folder.path / "x"); });
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

TEST(SafetensorsPreamble, RefusesNamesThatCannotBeRead) {
  const auto write = [](const std::string& name, int times) {
    SafetensorsHeader header;
    header.tensors.assign(times, {name, StoredType::u8, {0}});
    return safetensors_preamble(header);
  };
  EXPECT_EQ(write("a", 1).size() % 8, 0u);
  expect_error(ErrorCode::usage, "appears twice", [&] { write("a", 2); });
  expect_error(ErrorCode::usage, "reserved", [&] { write("__metadata__", 1); });
  expect_error(ErrorCode::usage, "no valid UTF-8", [&] { write("\xff", 1); });
}

// Random headers: what is written reads back equal, and again gives the same bytes.
TEST(SafetensorsPreamble, RoundTripsRandomHeaders) {
  std::mt19937 random(3);
  for (int round = 0; round < 500; ++round) {
    SafetensorsHeader header;
    for (size_t i = 0; i < random() % 20; ++i) {
      StoredTensor tensor{"t" + std::to_string(i) + "\"\\\n\xc3\xbc",
                          static_cast<StoredType>(random() % 15)};
      for (size_t k = 0; k < random() % 5; ++k) tensor.shape.push_back(random() % 7);
      header.tensors.push_back(tensor);
    }
    for (size_t i = 0; i < random() % 3; ++i) header.metadata["k" + std::to_string(i)] = "v\x01\"";
    const std::string bytes = safetensors_preamble(header);
    ASSERT_EQ(bytes.size() % 8, 0u);
    const uint64_t data = header.tensors.empty() ? 0 : header.tensors.back().end;
    SafetensorsHeader again = parse(bytes.substr(8), data);
    EXPECT_EQ(again.metadata, header.metadata);
    ASSERT_EQ(again.tensors.size(), header.tensors.size());
    EXPECT_EQ(safetensors_preamble(again), bytes);
  }
}

// The invariant of an accepted header.
void expect_tiles(const SafetensorsHeader& header, uint64_t data_bytes) {
  uint64_t position = 0;
  for (const StoredTensor& tensor : header.tensors) {
    ASSERT_EQ(tensor.begin, position);
    unsigned __int128 size = stored_type_size(tensor.type);
    for (const int64_t extent : tensor.shape) {
      ASSERT_GE(extent, 0);
      size *= static_cast<uint64_t>(extent);
    }
    ASSERT_TRUE(size == tensor.end - tensor.begin);
    position = tensor.end;
  }
  ASSERT_EQ(position, data_bytes);
}

// A header with one to four random edits: bytes changed, removed, inserted, parts copied.
std::string mutate(std::string text, std::mt19937& random) {
  static const std::string kBytes = "{}[]\":,0123456789-.eE\\u \xff\x00tfn";
  for (size_t edits = 1 + random() % 4; edits > 0 && !text.empty(); --edits) {
    const size_t at = random() % text.size();
    const char byte = random() % 4 ? kBytes[random() % kBytes.size()] : static_cast<char>(random());
    switch (random() % 5) {
      case 0:
        text[at] = byte;
        break;
      case 1:
        text.erase(at, 1 + random() % 4);
        break;
      case 2:
        text.insert(at, 1, byte);
        break;
      case 3:
        text.insert(at, text.substr(random() % text.size(), random() % 60));
        break;
      default: {
        const size_t digit = text.find_first_of("0123456789", at);
        if (digit != std::string::npos) text[digit] = static_cast<char>('0' + random() % 10);
      }
    }
  }
  return text;
}

TEST(SafetensorsHeader, MutatedHeadersAreRefusedOrTile) {
  const std::vector<std::string> seeds = {
      kTwo, one("\"BF16\"", "[0,3]", "[0,0]"),
      R"({"__metadata__":{"format":"pt"},"a.b":{"dtype":"I64","shape":[1],"data_offsets":[0,8]},)"
      R"("c":{"dtype":"F8_E4M3","shape":[21],"data_offsets":[8,29]}})"};
  std::mt19937 random(11);
  int accepted = 0;
  for (int round = 0; round < 20'000; ++round) {
    const std::string text = mutate(seeds[random() % seeds.size()], random);
    const uint64_t data_bytes = random() % 3 ? 29 : random() % 64;
    try {
      SafetensorsHeader header = parse(text, data_bytes);
      expect_tiles(header, data_bytes);
      const std::string bytes = safetensors_preamble(header);
      SafetensorsHeader again = parse(bytes.substr(8), data_bytes);
      EXPECT_EQ(safetensors_preamble(again), bytes);
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(error.code(), ErrorCode::bad_data) << error.what() << "\n" << text;
    }
    ASSERT_FALSE(HasFatalFailure()) << text;
  }
  EXPECT_GT(accepted, 100);  // the mutations reach the checks behind the parser
}

}  // namespace
}  // namespace fovea
