#include "core/ops/block_means.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/ops/device_kernel.h"
#include "core/ops/gather_rows.h"
#include "kernels/attention/mean_scores.h"

namespace fovea::ops {
namespace {

// What there is one of has a stride that counts nothing, and may be any number.
int64_t stride_of(const at::Tensor& x, int64_t axis) {
  return x.size(axis) == 1 ? 0 : x.stride(axis);
}

std::optional<at::Tensor> score(const MeansOfBlocks& means, double scale, at::ScalarType wanted,
                                int64_t least) {
  const at::Tensor q = means.q.contiguous(), k = means.k.contiguous();
  const at::Tensor offsets = means.kv_offsets.contiguous();
  kernels::MeanScoresArgs args;
  args.batch = q.size(0), args.heads = q.size(1), args.kv_heads = k.size(1);
  args.q_blocks = q.size(2), args.kv_blocks = k.size(2), args.dim = q.size(3);
  args.q = q.const_data_ptr<float>(), args.k = k.const_data_ptr<float>();
  args.kv_offsets = offsets.const_data_ptr<int32_t>();
  args.scale = static_cast<float>(scale);
  args.least = static_cast<int32_t>(std::clamp<int64_t>(least, 0, args.kv_blocks));
  const at::Tensor out =
      at::empty({args.batch, args.heads, args.q_blocks, args.kv_blocks}, q.options().dtype(wanted));
  if (wanted == at::kBool) {
    args.chosen = out.mutable_data_ptr<bool>();
  } else {
    args.scores = out.mutable_data_ptr<float>();
  }
  if (q.is_cpu()) {
    kernels::mean_scores_cpu(args);
    return out;
  }
#if FOVEA_HAS_CUDA
  if (accepted("mean_scores", kernels::mean_scores_cuda(args, cuda_target(q.device())))) return out;
#endif
  return std::nullopt;
}

}  // namespace

std::vector<at::Tensor> block_means(const std::vector<SharedBlocks>& sides) {
  FOVEA_ASSERT(!sides.empty() && sides.size() <= 2);
  const at::Tensor& first = sides[0].x;
  kernels::BlockMeansArgs args;
  args.batch = first.size(0), args.dim = first.size(3);
  args.num_sides = static_cast<int>(sides.size());
  std::vector<at::Tensor> held, out;
  for (size_t i = 0; i < sides.size(); ++i) {
    const at::Tensor x = with_aligned_rows(sides[i].x), offsets = sides[i].offsets.contiguous();
    held.insert(held.end(), {x, offsets});
    kernels::BlockMeansArgs::Side& side = args.sides[i];
    side.heads = x.size(1), side.rows = x.size(2);
    side.x = {x.const_data_ptr(), kernel_dtype(x.scalar_type()), stride_of(x, 0), stride_of(x, 1),
              stride_of(x, 2)};
    if (sides[i].rows.defined()) {
      held.push_back(sides[i].rows.contiguous());
      side.order = held.back().const_data_ptr<int32_t>();
    }
    side.offsets = offsets.const_data_ptr<int32_t>();
    side.blocks = offsets.numel() - 1;
    out.push_back(
        at::empty({args.batch, side.heads, side.blocks, args.dim}, x.options().dtype(at::kFloat)));
    side.means = out.back().mutable_data_ptr<float>();
  }
  run_on("block_means", first.device(), args, &kernels::block_means_cpu,
         FOVEA_CUDA_LAUNCHER(block_means_cuda));
  return out;
}

std::optional<at::Tensor> mean_scores(const MeansOfBlocks& means, double scale) {
  return score(means, scale, at::kFloat, 0);
}

std::optional<at::Tensor> highest_mean_scores(const MeansOfBlocks& means, double scale,
                                              int64_t least) {
  return score(means, scale, at::kBool, least);
}

}  // namespace fovea::ops
