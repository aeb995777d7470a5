#include "models/vit/clip_vision/image_processor.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/weights.h"
#include "tests/support/golden.h"

namespace fovea::models {
namespace {

Picture picture_of(const at::Tensor& bytes) {
  Picture picture;
  picture.height = static_cast<int>(bytes.size(0));
  picture.width = static_cast<int>(bytes.size(1));
  picture.rgb.assign(bytes.data_ptr<uint8_t>(), bytes.data_ptr<uint8_t>() + bytes.numel());
  return picture;
}

TEST(ClipImageProcessor, EqualsTransformers) {
  const TensorMap expected = load_tensors(test::golden("clip") / "pictures.safetensors");
  int64_t compared = 0;
  int64_t identical = 0;
  for (const auto& entry : fs::directory_iterator(test::golden("clip") / "processors")) {
    Report report(/*strict=*/true);
    const std::string name = entry.path().filename().string();
    const ClipImageProcessor saved = load_clip_image_processor(entry.path(), report);
    const ClipImageProcessor given(Config::read(entry.path() / "given.json"), report);
    for (int64_t i = 0; expected.contains(str("picture", i)); ++i) {
      SCOPED_TRACE(str(name, " picture ", i));
      const Picture picture = picture_of(expected.at(str("picture", i)));
      const at::Tensor& wanted = expected.at(str(name, ".", i));
      const at::Tensor actual = saved.process(picture);
      ASSERT_EQ(actual.sizes(), wanted.sizes());
      const double largest = (actual - wanted).abs().max().item<double>();
      EXPECT_LE(largest, 1e-5);
      EXPECT_TRUE(at::equal(given.process(picture), actual));
      ++compared;
      identical += at::equal(actual, wanted);
    }
  }
  EXPECT_EQ(compared, 72);
  std::printf("%ld of %ld bit-identical\n", static_cast<long>(identical),
              static_cast<long>(compared));
}

TEST(ClipImageProcessor, PrefersTheProcessorsFile) {
  const fs::path folder = fs::temp_directory_path() / str("fovea-processor-", ::getpid());
  fs::create_directory(folder);
  const auto write = [&](const char* name, const Json& json) {
    AtomicFile file(folder / name, /*overwrite=*/true);
    file.write(json.dump());
    file.commit();
  };
  write("preprocessor_config.json", {{"crop_size", 20}});
  Report report(/*strict=*/true);
  const Picture grey = make_picture(40, 30);
  EXPECT_EQ(load_clip_image_processor(folder, report).process(grey).size(2), 20);
  write("processor_config.json", {{"image_processor", {{"crop_size", 24}}}});
  EXPECT_EQ(load_clip_image_processor(folder, report).process(grey).size(2), 24);
  write("processor_config.json", {{"tokenizer", "other"}});
  EXPECT_EQ(load_clip_image_processor(folder, report).process(grey).size(2), 20);
  for (const char* name : {"preprocessor_config.json", "processor_config.json"})
    fs::remove(folder / name);
  fs::remove(folder);
}

TEST(ClipImageProcessor, RefusesUnsupportedOptionsByName) {
  const std::vector<std::pair<Json, std::string>> wrong{
      {{{"resample", 1}}, "resample"},
      {{{"resample", 4}}, "resample"},
      {{{"resample", 9}}, "resample"},
      {{{"do_pad", true}}, "do_pad"},
      {{{"size", {{"longest_edge", 224}}}}, "size"},
      {{{"size", {{"min_pixels", 10}, {"max_pixels", 20}}}}, "size"},
      {{{"size", {{"height", 0}, {"width", 20}}}}, "size"},
      {{{"size", {{"shortest_edge", 100'000}}}}, "size"},
      {{{"size", "large"}}, "size"},
      {{{"size", {1, 2, 3}}}, "size"},
      {{{"crop_size", {{"shortest_edge", 224}}}}, "crop_size"},
      {{{"crop_size", {16'000, 16'000}}}, "crop_size"},
      {{{"image_mean", {0.5, 0.5}}}, "image_mean"},
      {{{"image_std", {0.5, 0.0, 0.5}}}, "image_std"},
      {{{"rescale_factor", 0}}, "rescale_factor"},
      {{{"image_processor_type", "SiglipImageProcessor"}}, "image_processor_type"},
      {{{"no_such_key", 1}}, "no_such_key"},
  };
  for (const auto& [json, key] : wrong) {
    Report report(/*strict=*/true);
    try {
      ClipImageProcessor(Config(json, "preprocessor_config.json"), report);
      ADD_FAILURE() << json.dump();
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::bad_data);
      EXPECT_NE(std::string(error.what()).find("'" + key + "'"), std::string::npos) << error.what();
    }
  }
}

TEST(ClipImageProcessor, RefusesPicturesThatWouldGrowTooLarge) {
  Report report(/*strict=*/true);
  const ClipImageProcessor processor(Config(Json::object(), "preprocessor_config.json"), report);
  try {
    processor.process(make_picture(2, 16'384));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), ErrorCode::resource);
  }
}

}  // namespace
}  // namespace fovea::models
