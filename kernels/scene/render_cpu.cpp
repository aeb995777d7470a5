#include <limits>

#include "kernels/scene/render.h"
#include "kernels/scene/shade.h"

namespace fovea::kernels {

Status check(const RenderArgs& args) {
  if (args.num_pictures < 0 || args.height < 1 || args.width < 1)
    return {StatusCode::invalid, "empty pictures"};
  if (args.samples != 1 && args.samples != 4)
    return {StatusCode::invalid, "samples must be 1 or 4"};
  if (args.num_pictures > 0 && (!args.poses || !args.out))
    return {StatusCode::invalid, "null data"};
  if (args.height > (1 << 14) || args.width > (1 << 14) ||
      args.num_pictures > std::numeric_limits<int32_t>::max())
    return {StatusCode::unsupported, "more than 2^14 pixels a side or 2^31 - 1 pictures"};
  return {};
}

Status render_cpu(const RenderArgs& args, RowRange range) {
  if (const Status status = check(args); !status.ok()) return status;
  for (int64_t row = range.begin; row < range.end; ++row) {
    const ScenePose& pose = args.poses[row / args.height];
    const int y = static_cast<int>(row % args.height);
    uint8_t* out = args.out + row * args.width * 3;
    for (int x = 0; x < args.width; ++x) {
      const Bytes3 pixel = scene::pixel_of(pose, {args.height, args.width, args.samples, x, y});
      for (int c = 0; c < 3; ++c) out[3 * x + c] = pixel.value[c];
    }
  }
  return {};
}

}  // namespace fovea::kernels
