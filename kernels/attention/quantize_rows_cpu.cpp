#include "kernels/attention/quantize_rows.h"

#include <algorithm>
#include <type_traits>

#include "kernels/attention/cpu_variants.h"
#include "kernels/attention/panels_cpu.h"
#include "kernels/attention/tasks_cpu.h"

namespace fovea::kernels::FOVEA_ISA {
namespace {

constexpr float kLargest = 127;
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: added, it leaves the nearest integer

typedef int8_t Bytes __attribute__((vector_size(kWidth)));

/// Where the pieces of one head are.
struct Head {
  int64_t batch, head;
  const int32_t* offsets;
};

/// `count` channels from `channel` on, without their mean; the lanes beyond get 0.
template <typename T>
Floats centred(const HeadView<T>& x, const float* mean, int64_t position, int64_t channel,
               int64_t count) {
  const Floats value = load_channels(x, position, channel, count);
  if (!mean) return value;
  const float* from = mean + channel;
  return value + broadcast(-1.0f) * (count == kUnit ? load(from) : load_tail(from, count));
}

/// The largest magnitude of a row as bits, which are ordered as magnitudes are, NaN last.
template <typename T>
SignedWord largest_of_row(const HeadView<T>& x, const float* mean, int64_t position, int64_t dim,
                          SignedWord most) {
  for (int64_t c = 0; c < dim; c += kUnit) {
    const Floats values = centred(x, mean, position, c, std::min(kUnit, dim - c));
    for (const Float& part : values.part) {
      SignedWord bits;
      std::memcpy(&bits, &part, sizeof(bits));
      bits &= 0x7fffffff;
      most = bits > most ? bits : most;
    }
  }
  return most;
}

template <typename T>
void quantize_row(const HeadView<T>& x, const float* mean, int64_t position, int64_t dim,
                  float scale, int8_t* to) {
  for (int64_t c = 0; c < dim; c += kUnit) {
    const int64_t count = std::min(kUnit, dim - c);
    const Floats values = centred(x, mean, position, c, count);
    int8_t numbers[kUnit];
    for (int i = 0; i < kParts; ++i) {
      const Float rounded = values.part[i] / scale + kRounder;
      SignedWord bits;
      std::memcpy(&bits, &rounded, sizeof(bits));
      const Bytes low = __builtin_convertvector(bits, Bytes);
      std::memcpy(numbers + i * kWidth, &low, sizeof(low));
    }
    std::memcpy(to + c, numbers, count);
  }
}

template <typename T>
void quantize_head(const QuantizeRowsArgs& args, const Head& at) {
  const HeadView<T> x = head_view<T>(args.x, args.order, at.batch, at.head);
  const int64_t index = at.batch * args.heads + at.head;
  const float* mean = args.mean ? args.mean + index * args.dim : nullptr;
  const int64_t pieces = args.offsets ? args.num_pieces : args.len;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const int64_t begin = at.offsets ? at.offsets[piece] : piece;
    const int64_t end = at.offsets ? at.offsets[piece + 1] : piece + 1;
    SignedWord most = {};
    for (int64_t p = begin; p < end; ++p) most = largest_of_row(x, mean, p, args.dim, most);
    int32_t bits = 0;
    for (int i = 0; i < kWidth; ++i) bits = std::max(bits, most[i]);
    float largest;
    std::memcpy(&largest, &bits, sizeof(largest));
    const float scale = largest == 0.0f ? 1.0f : largest / kLargest;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t row = index * args.len + x.row(p);
      args.scale[row] = scale;
      quantize_row(x, mean, p, args.dim, scale, args.out + row * args.dim);
    }
  }
}

}  // namespace

void quantize_rows(const QuantizeRowsArgs& args, const Parallel& parallel) {
  const auto one_head = [](const QuantizeRowsArgs& a, int64_t task, int64_t) {
    const int64_t batch = task / a.heads, head = task % a.heads;
    const int64_t map = batch * a.map_batch_stride + head * a.map_head_stride;
    const Head at{batch, head, a.offsets ? a.offsets + map * (a.num_pieces + 1) : nullptr};
    with_type(a.x.dtype,
              [&](auto* type) { quantize_head<std::remove_pointer_t<decltype(type)>>(a, at); });
  };
  run_tasks(args, parallel, args.batch * args.heads, one_head);
}

}  // namespace fovea::kernels::FOVEA_ISA
