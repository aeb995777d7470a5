#include "pipelines/image_input.h"

#include <ATen/ATen.h>

#include "core/media/resize.h"

namespace fovea::pipelines {

at::Tensor picture_to_tensor(const Picture& picture, int64_t height, int64_t width) {
  check_picture_size(width, height, "image");
  Picture resized =
      resize(picture, static_cast<int>(width), static_cast<int>(height), ResizeFilter::lanczos);
  const at::Tensor bytes =
      at::from_blob(resized.rgb.data(), {height, width, Picture::channels}, at::kByte);
  const at::Tensor unit = bytes.permute({2, 0, 1}).unsqueeze(0).to(at::kFloat) / 255.0;
  return (2.0 * unit - 1.0).contiguous();
}

}  // namespace fovea::pipelines
