#include "pipelines/image_input.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/check.h"
#include "core/weights.h"
#include "tests/support/golden.h"

namespace fovea::pipelines {
namespace {

TEST(ImageInput, EqualsDiffusersVideoProcessor) {
  const TensorMap expected = load_tensors(test::golden("clip") / "pictures.safetensors");
  int64_t compared = 0;
  for (int64_t i = 0; expected.contains(str("picture", i)); ++i) {
    const at::Tensor& bytes = expected.at(str("picture", i));
    Picture picture =
        make_picture(static_cast<int>(bytes.size(1)), static_cast<int>(bytes.size(0)));
    picture.rgb.assign(bytes.data_ptr<uint8_t>(), bytes.data_ptr<uint8_t>() + bytes.numel());
    EXPECT_TRUE(at::equal(picture_to_tensor(picture, 48, 80), expected.at(str("video48.", i))))
        << i;
    EXPECT_TRUE(at::equal(picture_to_tensor(picture, 64, 32), expected.at(str("video64.", i))))
        << i;
    ++compared;
  }
  EXPECT_EQ(compared, 6);
}

TEST(ImageInput, RefusesSizesBelowOneAndAboveTheBudget) {
  const Picture picture = make_picture(4, 4);
  EXPECT_THROW(picture_to_tensor(picture, 0, 16), Error);
  EXPECT_THROW(picture_to_tensor(picture, 16, int64_t{1} << 40), Error);
}

}  // namespace
}  // namespace fovea::pipelines
