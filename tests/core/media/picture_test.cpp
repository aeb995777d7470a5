#include "core/media/picture.h"

#include <algorithm>
#include <random>

#include "core/json.h"
#include "core/media/picture_header.h"
#include "core/media/png_chunks.h"
#include "core/media/resize.h"
#include "tests/core/media/media_testing.h"

namespace fovea {
namespace {

using fovea::testing::error_code;
using fovea::testing::golden;
using fovea::testing::read_bytes;
using fovea::testing::TemporaryFolder;
using fovea::testing::write_bytes;

Picture random_picture(int width, int height, uint32_t seed) {
  std::mt19937 random(seed);
  Picture picture = make_picture(width, height);
  for (uint8_t& value : picture.rgb) value = static_cast<uint8_t>(random());
  return picture;
}

int largest_difference(const Picture& a, const Picture& b) {
  EXPECT_EQ(a.width, b.width);
  EXPECT_EQ(a.height, b.height);
  int largest = 0;
  for (size_t i = 0; i < std::min(a.rgb.size(), b.rgb.size()); ++i) {
    largest = std::max(largest, std::abs(a.rgb[i] - b.rgb[i]));
  }
  return largest;
}

TEST(ReadPicture, EqualsPilForEveryPngAndBmpVariant) {
  const fs::path folder = golden("media");
  int read = 0, refused = 0;
  const Json cases = read_json(folder / "cases.json");
  for (const Json& item : cases.at("exact")) {
    const std::string name = item;
    const Picture expected = read_picture(folder / (name + ".expected.png"));
    if (name.starts_with("c0d16")) {  // 16-bit grey: documented as refused
      EXPECT_EQ(error_code([&] { read_picture(folder / name); }), ErrorCode::bad_data) << name;
      ++refused;
      continue;
    }
    EXPECT_EQ(largest_difference(read_picture(folder / name), expected), 0) << name;
    ++read;
  }
  EXPECT_GT(read, 50);
  EXPECT_EQ(refused, 4);
}

TEST(ReadPicture, IsNearPilForJpeg) {
  const fs::path folder = golden("media");
  const Json cases = read_json(folder / "cases.json");
  for (const Json& item : cases.at("jpeg")) {
    const std::string name = item;
    const Picture expected = read_picture(folder / (name + ".expected.png"));
    const Picture picture = read_picture(folder / name);
    double sum = 0;
    for (size_t i = 0; i < picture.rgb.size(); ++i)
      sum += std::abs(picture.rgb[i] - expected.rgb[i]);
    const double mean = sum / static_cast<double>(picture.rgb.size());
    EXPECT_LE(mean, 0.5) << name;
    // At the right edge of 4:2:2 the two libraries interpolate colour differently.
    EXPECT_LE(largest_difference(picture, expected), name.starts_with("s1") ? 20 : 8) << name;
    RecordProperty(name, std::to_string(mean));
  }
}

TEST(ReadPicture, TurnsByExifOnlyWhenAsked) {
  const fs::path folder = golden("media");
  const Json cases = read_json(folder / "cases.json");
  for (const Json& item : cases.at("oriented")) {
    const std::string name = item["name"];
    const PictureInfo info = probe_picture(folder / name);
    EXPECT_EQ(info.orientation, item["orientation"].get<int>()) << name;
    EXPECT_EQ(info.width, 12);
    const Picture expected = read_picture(folder / (name + ".expected.png"));
    const Picture turned = oriented(read_picture(folder / name), info.orientation);
    EXPECT_LE(largest_difference(turned, expected), name.ends_with("png") ? 0 : 8) << name;
  }
}

TEST(Resize, EqualsPilBitForBit) {
  const fs::path folder = golden("media");
  int compared = 0;
  const Json cases = read_json(folder / "cases.json");
  for (const Json& item : cases.at("resize")) {
    const Picture in = read_picture(folder / item["in"].get<std::string>());
    const Picture expected = read_picture(folder / item["out"].get<std::string>());
    const std::string filter = item["filter"];
    const ResizeFilter kind = filter == "bilinear"  ? ResizeFilter::bilinear
                              : filter == "bicubic" ? ResizeFilter::bicubic
                                                    : ResizeFilter::lanczos;
    const Picture out = resize(in, expected.width, expected.height, kind);
    EXPECT_EQ(largest_difference(out, expected), 0) << item.dump();
    ++compared;
  }
  EXPECT_EQ(compared, 240);
}

TEST(Resize, RefusesSizesOutsideTheBudget) {
  const Picture picture = random_picture(4, 4, 1);
  const auto code = [&](int width, int height) {
    return error_code([&] { resize(picture, width, height, ResizeFilter::bilinear); });
  };
  EXPECT_EQ(code(0, 4), ErrorCode::usage);
  EXPECT_EQ(code(4, -1), ErrorCode::usage);
  EXPECT_EQ(code(20000, 4), ErrorCode::resource);
  EXPECT_EQ(code(16384, 16384), ErrorCode::resource);
}

TEST(EncodePng, RoundTripsPixelsAndTexts) {
  const TemporaryFolder folder;
  PngText text{{"Comment", R"({"prompt": "a cat 🐈 über"})"}, {"Software", "Fovea"}, {"Empty", ""}};
  std::string large(66'000, 'x');
  for (size_t i = 0; i + 4 <= large.size(); i += 100) large.replace(i, 4, "🎬");
  text["Large"] = large;
  for (const auto& [width, height] : {std::pair{1, 1}, {1, 9}, {31, 1}, {64, 48}}) {
    const Picture picture = random_picture(width, height, 3);
    const std::string bytes = encode_png(picture, text);
    EXPECT_EQ(bytes, encode_png(picture, text));
    write_bytes(folder / "a.png", bytes);
    const Picture back = read_picture(folder / "a.png");
    EXPECT_EQ(largest_difference(back, picture), 0);
    EXPECT_EQ(read_png_text(folder / "a.png"), text);
    EXPECT_EQ(probe_picture(folder / "a.png").format, "png");
  }
}

TEST(EncodePng, RefusesTextsThatPngCannotHold) {
  const Picture picture = random_picture(2, 2, 1);
  for (const PngText& text :
       {PngText{{"", "x"}}, PngText{{std::string(80, 'k'), "x"}}, PngText{{" key", "x"}},
        PngText{{"ключ", "x"}}, PngText{{"key", std::string("a\0b", 3)}}}) {
    EXPECT_EQ(error_code([&] { encode_png(picture, text); }), ErrorCode::usage);
  }
}

TEST(ReadPngText, ReadsLatin1AndRefusesDamagedChunks) {
  const TemporaryFolder folder;
  const std::string plain = encode_png(random_picture(2, 2, 1));
  const auto with = [&](std::string_view type, std::string_view data) {
    std::string bytes = plain;
    bytes.insert(33, png::encode_chunk(type, data));
    write_bytes(folder / "a.png", bytes);
    return read_png_text(folder / "a.png");
  };
  EXPECT_EQ(with("tEXt", std::string_view("Title\0\xFC", 7)), (PngText{{"Title", "ü"}}));
  for (const auto& [type, data] : {std::pair<std::string, std::string>{"tEXt", "no separator"},
                                   {"iTXt", std::string("k\0\1", 3)},
                                   {"zTXt", std::string("k\0", 2)},
                                   {"zTXt", std::string("k\0\0garbage", 10)}}) {
    EXPECT_EQ(error_code([&] { with(type, data); }), ErrorCode::bad_data) << type;
  }
}

TEST(ReadPicture, ChecksSizesBeforeDecoding) {
  const TemporaryFolder folder;
  // A header of 60,000 x 60,000 and nothing else that matters.
  std::string header("\0\0\xEA\x60\0\0\xEA\x60\x08\x02\0\0\0", 13);
  write_bytes(folder / "huge.png",
              std::string(png::kSignature) + png::encode_chunk("IHDR", header) +
                  png::encode_chunk("IDAT", "x") + png::encode_chunk("IEND", ""));
  EXPECT_EQ(error_code([&] { read_picture(folder / "huge.png"); }), ErrorCode::resource);
  const Picture picture = random_picture(20, 10, 1);
  write_bytes(folder / "a.png", encode_png(picture));
  EXPECT_EQ(error_code([&] { read_picture(folder / "a.png", {.max_side = 19}); }),
            ErrorCode::resource);
  EXPECT_EQ(error_code([&] { read_picture(folder / "a.png", {.max_pixels = 199}); }),
            ErrorCode::resource);
  EXPECT_EQ(error_code([&] { read_picture(folder / "a.png", {.max_file_bytes = 10}); }),
            ErrorCode::resource);
  EXPECT_EQ(read_picture(folder / "a.png", {.max_side = 20, .max_pixels = 200}).width, 20);
}

TEST(ReadPicture, RefusesWhatIsNoPicture) {
  const TemporaryFolder folder;
  const auto code = [&](std::string_view bytes) {
    write_bytes(folder / "x", bytes);
    return error_code([&] { read_picture(folder / "x"); });
  };
  EXPECT_EQ(code(""), ErrorCode::bad_data);
  EXPECT_EQ(code("hello"), ErrorCode::bad_data);
  EXPECT_EQ(code("GIF89a............"), ErrorCode::bad_data);
  EXPECT_EQ(code("BM"), ErrorCode::bad_data);
  EXPECT_EQ(code("\xFF\xD8\xFF\xD9"), ErrorCode::bad_data);
  EXPECT_EQ(error_code([&] { read_picture(folder / "missing.png"); }), ErrorCode::bad_data);
  EXPECT_EQ(error_code([&] { read_picture(folder.path()); }), ErrorCode::bad_data);
}

TEST(ReadPicture, RefusesEveryTruncation) {
  const TemporaryFolder folder;
  for (const char* name : {"s2p0.jpg", "s0p1.jpg", "RGB_17.bmp", "c6d8i1t0.png"}) {
    const std::string bytes = read_bytes(golden("media") / name);
    for (size_t size = 0; size < bytes.size(); size += 1 + bytes.size() / 97) {
      EXPECT_EQ(error_code([&] {
                  decode_picture({bytes.data(), size}, name);
                }),
                ErrorCode::bad_data)
          << name << " cut to " << size;
    }
    EXPECT_NO_THROW(decode_picture(bytes, name));
  }
}

TEST(ReadPicture, SurvivesRandomDamage) {
  std::mt19937 random(11);
  int refused = 0;
  for (const char* name : {"s2p0.jpg", "s1p1.jpg", "cmyk.jpg", "P_17.bmp", "RGBA_32.bmp",
                           "c3d4i1t1.png", "c2d16i0t0.png"}) {
    const std::string whole = read_bytes(golden("media") / name);
    for (int round = 0; round < 300; ++round) {
      std::string bytes = whole;
      for (int k = 1 + static_cast<int>(random() % 4); k > 0; --k) {
        bytes[random() % bytes.size()] = static_cast<char>(random());
      }
      // Only sizes that a small file may claim: the budget is not what is tested here.
      const auto code = error_code([&] { decode_picture(bytes, name, {.max_pixels = 1 << 22}); });
      if (code) ++refused;
      EXPECT_TRUE(!code || code == ErrorCode::bad_data || code == ErrorCode::resource) << name;
    }
  }
  EXPECT_GT(refused, 600);  // all damaged PNG files among them
}

TEST(ReadPicture, StopsDataThatUnpacksWithoutEnd) {
  const fs::path folder = golden("media");
  try {
    read_picture(folder / "pixel_bomb.png");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::bad_data);
    EXPECT_NE(error.reason().find("unpacks to more"), std::string::npos) << error.what();
  }
  EXPECT_EQ(error_code([&] { read_png_text(folder / "text_bomb.png"); }), ErrorCode::resource);
  EXPECT_EQ(read_picture(folder / "text_bomb.png").width, 2);
}

TEST(ReadPngText, UnpacksCompressedTexts) {
  EXPECT_EQ(read_png_text(golden("media") / "packed_text.png"),
            (PngText{{"A", "packed ü"}, {"B", "packed 🐈"}}));
}

TEST(ExifOrientation, IgnoresNonsense) {
  EXPECT_EQ(exif_orientation(""), 1);
  EXPECT_EQ(exif_orientation("II*"), 1);
  EXPECT_EQ(exif_orientation(std::string_view("II*\0\xFF\xFF\xFF\xFF", 8)), 1);
  std::string exif("MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0", 22);
  EXPECT_EQ(exif_orientation(exif), 6);
  exif[19] = 9;
  EXPECT_EQ(exif_orientation(exif), 1);
  for (size_t size = 0; size < exif.size(); ++size) exif_orientation({exif.data(), size});
}

}  // namespace
}  // namespace fovea
