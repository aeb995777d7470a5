#include "core/ops/kmeans.h"

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/ops/device_kernel.h"
#include "core/ops/gather_rows.h"
#include "kernels/attention/kmeans.h"

namespace fovea::ops {
namespace {

constexpr int64_t kMostHeads = 65535, kMostTokens = int64_t{1} << 29;

void run(const char* step, const at::Tensor& x, const kernels::KMeansArgs& args,
         void (*cpu)(const kernels::KMeansArgs&), CudaLauncher<kernels::KMeansArgs> cuda) {
  run_on(step, x.device(), args, cpu, cuda);
}

void make_factors(const at::Tensor& x, const kernels::KMeansArgs& args) {
  run("kmeans_factors", x, args, &kernels::kmeans_factors_cpu,
      FOVEA_CUDA_LAUNCHER(kmeans_factors_cuda));
}

}  // namespace

bool has_k_means(const at::Tensor& x, int64_t clusters) {
  const bool is_here = x.is_cpu() || (x.is_cuda() && kHasCudaKernels);
  const bool is_half = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  return is_here && is_half && (x.size(3) == 64 || x.size(3) == 128) && x.numel() > 0 &&
         x.size(0) * x.size(1) <= kMostHeads && x.size(2) <= kMostTokens && clusters > 0 &&
         clusters <= kernels::kMostKMeansClusters;
}

Clusters k_means(const at::Tensor& x, const at::Tensor& centroid, int64_t iterations,
                 const at::Tensor& valid_len) {
  FOVEA_ASSERT(has_k_means(x, centroid.size(2)));
  const at::Tensor rows = with_aligned_rows(x.detach());
  kernels::KMeansArgs args;
  args.batch = x.size(0), args.heads = x.size(1), args.tokens = x.size(2), args.dim = x.size(3);
  args.clusters = centroid.size(2);
  args.x = {rows.const_data_ptr(), kernel_dtype(rows.scalar_type()), rows.stride(0), rows.stride(1),
            rows.stride(2)};
  const auto made = [&](at::IntArrayRef of_head, at::ScalarType type) {
    std::vector<int64_t> sizes = {args.batch, args.heads};
    sizes.insert(sizes.end(), of_head.begin(), of_head.end());
    return at::empty(sizes, at::device(x.device()).dtype(type));
  };
  at::Tensor lengths;
  if (valid_len.defined()) {
    lengths = valid_len.expand({args.batch}).contiguous();
    args.valid_len = lengths.const_data_ptr<int64_t>();
  }
  Clusters out;
  out.centroid = made({args.clusters, args.dim}, at::kFloat).copy_(centroid.detach());
  args.centroid = out.centroid.mutable_data_ptr<float>();
  const at::Tensor factors = made({args.places(), 2 * args.dim}, x.scalar_type());
  args.factors = factors.mutable_data_ptr();
  const at::Tensor half = made({args.places()}, at::kFloat);
  args.half = half.mutable_data_ptr<float>();
  const at::Tensor label = made({args.tokens}, at::kInt);
  args.label = label.mutable_data_ptr<int32_t>();
  out.order = made({args.tokens}, at::kInt);
  args.order = out.order.mutable_data_ptr<int32_t>();
  out.count = made({args.clusters}, at::kLong);
  args.count = out.count.mutable_data_ptr<int64_t>();
  out.valid = made({args.clusters}, at::kLong);
  args.valid = out.valid.mutable_data_ptr<int64_t>();
  const at::Tensor pieces = made({args.most_pieces(), 2}, at::kInt);
  args.pieces = reinterpret_cast<kernels::ClusterPiece*>(pieces.mutable_data_ptr<int32_t>());
  const at::Tensor first_piece = made({args.clusters + 1}, at::kInt);
  args.first_piece = first_piece.mutable_data_ptr<int32_t>();
  const at::Tensor sum = made({args.most_pieces(), args.dim}, at::kFloat);
  args.sum = sum.mutable_data_ptr<float>();

  make_factors(x, args);
  args.has_sums = true;
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    run("kmeans_labels", x, args, &kernels::kmeans_labels_cpu,
        FOVEA_CUDA_LAUNCHER(kmeans_labels_cuda));
    run("kmeans_sort", x, args, &kernels::kmeans_sort_cpu, FOVEA_CUDA_LAUNCHER(kmeans_sort_cuda));
    run("kmeans_sums", x, args, &kernels::kmeans_sums_cpu, FOVEA_CUDA_LAUNCHER(kmeans_sums_cuda));
    make_factors(x, args);
  }
  out.label = label.to(at::kLong);
  return out;
}

}  // namespace fovea::ops
