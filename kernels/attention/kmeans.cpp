#include "kernels/attention/kmeans.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/common/half.h"

namespace fovea::kernels {
namespace {

int64_t all_heads(const KMeansArgs& args) { return args.batch * args.heads; }

template <typename T>
const T* token_of(const KMeansArgs& args, int64_t head, int64_t token) {
  return static_cast<const T*>(args.x.data) + head / args.heads * args.x.batch_stride +
         head % args.heads * args.x.head_stride + token * args.x.row_stride;
}

void make_mean(const KMeansArgs& args, int64_t head, int64_t cluster) {
  const int64_t valid = args.valid[head * args.clusters + cluster];
  if (valid == 0) return;
  const int32_t* first = args.first_piece + head * (args.clusters + 1) + cluster;
  for (int64_t c = 0; c < args.dim; ++c) {
    float sum = 0;
    for (int64_t i = first[0]; i < first[1]; ++i) {
      sum += args.sum[(head * args.most_pieces() + i) * args.dim + c];
    }
    args.centroid[(head * args.clusters + cluster) * args.dim + c] =
        sum / static_cast<float>(valid);
  }
}

template <typename T>
void make_factors(const KMeansArgs& args) {
  const int64_t dim = args.dim;
  for (int64_t i = 0; i < all_heads(args) * args.places(); ++i) {
    const int64_t head = i / args.places(), cluster = i % args.places();
    T* factors = static_cast<T*>(args.factors) + i * 2 * dim;
    std::fill_n(factors, 2 * dim, from_float<T>(0));
    args.half[i] = std::numeric_limits<float>::infinity();
    if (cluster >= args.clusters) continue;
    if (args.has_sums) make_mean(args, head, cluster);
    const float* centroid = args.centroid + (head * args.clusters + cluster) * dim;
    float square = 0;
    for (int64_t c = 0; c < dim; ++c) {
      const T high = from_float<T>(centroid[c]);
      factors[kmeans_place(c)] = high;
      factors[dim + kmeans_place(c)] = from_float<T>(centroid[c] - to_float(high));
      square += centroid[c] * centroid[c];
    }
    args.half[i] = square / 2;
  }
}

template <typename T>
void make_labels(const KMeansArgs& args) {
  const int64_t dim = args.dim;
  std::vector<float> own(static_cast<size_t>(dim));
  for (int64_t i = 0; i < all_heads(args) * args.tokens; ++i) {
    const int64_t head = i / args.tokens, token = i % args.tokens;
    const T* x = token_of<T>(args, head, token);
    const bool is_valid = token < args.seen(head / args.heads);
    for (int64_t c = 0; c < dim; ++c) own[kmeans_place(c)] = is_valid ? to_float(x[c]) : 0;
    float most = -std::numeric_limits<float>::infinity();
    args.label[i] = 0;
    for (int64_t cluster = 0; cluster < args.clusters; ++cluster) {
      const int64_t place = head * args.places() + cluster;
      const T* factors = static_cast<const T*>(args.factors) + place * 2 * dim;
      float sum = 0;
      for (int64_t c = 0; c < 2 * dim; ++c) sum += own[c % dim] * to_float(factors[c]);
      if (!(sum - args.half[place] > most)) continue;
      most = sum - args.half[place];
      args.label[i] = static_cast<int32_t>(cluster);
    }
  }
}

void sort_head(const KMeansArgs& args, int64_t head) {
  const int32_t* label = args.label + head * args.tokens;
  int64_t *count = args.count + head * args.clusters, *valid = args.valid + head * args.clusters;
  std::fill_n(count, args.clusters, 0);
  std::fill_n(valid, args.clusters, 0);
  for (int64_t i = 0; i < args.tokens; ++i) {
    ++count[label[i]];
    valid[label[i]] += i < args.seen(head / args.heads);
  }
  ClusterPiece* pieces = args.pieces + head * args.most_pieces();
  int32_t* first_piece = args.first_piece + head * (args.clusters + 1);
  std::vector<int64_t> next;  // position of each cluster
  int64_t end = 0;
  int32_t number = 0;
  for (int64_t c = 0; c < args.clusters; ++c) {
    first_piece[c] = number;
    next.push_back(end);
    end += count[c];
    for (int64_t at = next[c]; at < end; at += kKMeansPiece) {
      const int64_t last = std::min(at + kKMeansPiece, end);
      pieces[number++] = {static_cast<int32_t>(at), static_cast<int32_t>(last)};
    }
  }
  first_piece[args.clusters] = number;
  for (int64_t i = 0; i < args.tokens; ++i) {
    args.order[head * args.tokens + next[label[i]]++] = static_cast<int32_t>(i);
  }
}

template <typename T>
void make_sums(const KMeansArgs& args) {
  for (int64_t head = 0; head < all_heads(args); ++head) {
    const int32_t pieces = args.first_piece[head * (args.clusters + 1) + args.clusters];
    for (int64_t i = 0; i < pieces; ++i) {
      const int64_t place = head * args.most_pieces() + i;
      float* sum = args.sum + place * args.dim;
      std::fill_n(sum, args.dim, 0.0f);
      for (int64_t at = args.pieces[place].begin; at < args.pieces[place].end; ++at) {
        const int64_t token = args.order[head * args.tokens + at];
        if (token >= args.seen(head / args.heads)) continue;
        const T* x = token_of<T>(args, head, token);
        for (int64_t c = 0; c < args.dim; ++c) sum[c] += to_float(x[c]);
      }
    }
  }
}

template <typename F>
void of_type(const KMeansArgs& args, F f) {
  args.x.dtype == DType::f16 ? f(Half()) : f(BFloat16());
}

}  // namespace

void kmeans_factors_cpu(const KMeansArgs& args) {
  of_type(args, [&](auto type) { make_factors<decltype(type)>(args); });
}

void kmeans_labels_cpu(const KMeansArgs& args) {
  of_type(args, [&](auto type) { make_labels<decltype(type)>(args); });
}

void kmeans_sort_cpu(const KMeansArgs& args) {
  for (int64_t head = 0; head < all_heads(args); ++head) sort_head(args, head);
}

void kmeans_sums_cpu(const KMeansArgs& args) {
  of_type(args, [&](auto type) { make_sums<decltype(type)>(args); });
}

}  // namespace fovea::kernels
