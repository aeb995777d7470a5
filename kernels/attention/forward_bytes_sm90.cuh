#pragma once

#include <cstdint>

#include "kernels/attention/forward_tile_sm90.cuh"

// The computing warpgroups of the forward pass on compute capability 9.0a in 8-bit numbers: q and k
// in e4m3 or integers, v in e4m3, transposed, and the softmax' weights in e4m3.
//
// Weights are quantized relative to a power of 2, which only shifts their exponents: what a weight
// is rounded to does not depend on it, and the largest logit may be found as keys come. Their sum
// is that of the rounded ones, by the matrix units: V has a row of ones behind its channels.
//
// Steps overlap as those of forward_sm90.cuh do. What differs: the matrix units keep 14 bits of a
// sum of e4m3 products, so that a step's O is a sum of its own and added to that of the tile in
// fp32, times the factor that a new power asks for (in two levels, as in SageAttention2, Zhang et
// al. 2024, arXiv:2411.10958). Weights stay in registers: the quantizer of v laid its keys out for
// that.

namespace fovea::kernels::sm90 {

/// The softmax of a thread's two rows, of logits in units that change from step to step. The weight
/// of a logit is 2^power times its exponential; `power` is such that the largest one is from 128 to
/// 256, and stays as long as that is no more than e4m3's largest number.
struct BytesSoftmax {
  static constexpr float kMost = 8.807354922057604f;  // log2(448)
  static constexpr float kNone = 1e30f;               // there was no logit so far

  float power[2] = {kNone, kNone};  // a whole number
  float sum[2] = {0, 0};            // of the row's weights, rounded
  float shift[2];                   // weights of the step at hand are 2^(s * unit + shift)

  /// Begins a step of logits (s - base) * unit / log2(e). Returns whether what so far was summed up
  /// is to be multiplied by `keep`.
  template <int kCount>
  __device__ bool begin(const float (&unit)[2], float base, const float (&s)[kCount],
                        float (&keep)[2]) {
#pragma unroll
    for (int row = 0; row < 2; ++row) shift[row] = shift_of(unit[row], base, power[row]);
    const LargestBits top(s);
    const bool more =
        is_more(top.of_row[0], unit[0], shift[0]) | is_more(top.of_row[1], unit[1], shift[1]);
    const bool changes = __any_sync(0xffffffff, more);
    if (changes) change(unit, base, s, keep);
    return changes;
  }

  __device__ static float shift_of(float unit, float base, float power) {
    return base == 0 ? power : fmaf(-base, unit, power);
  }

  /// Whether the weight of one of `LargestBits` is more than e4m3's largest number, or may be.
  __device__ static bool is_more(float s, float unit, float shift) {
    return !(fmaf(s, unit, shift) <= kMost) | ((s < 0) & (shift > kMost));
  }

  template <int kCount>
  __device__ void change(const float (&unit)[2], float base, const float (&s)[kCount],
                         float (&keep)[2]) {
    const float least[2] = {-INFINITY, -INFINITY};
    float now[2];
    find_largest(s, least, now);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      keep[row] = 1;
      if (!(fmaf(now[row], unit[row], shift[row]) > kMost)) continue;
      const float next = 8 - ceilf((now[row] - base) * unit[row]);
      keep[row] = ptx::exp2_approx(next - power[row]);
      power[row] = next;
      shift[row] = shift_of(unit[row], base, next);
    }
  }

  /// Half of the step's logits become weights.
  template <int kCount>
  __device__ void weigh(const float (&unit)[2], float (&s)[kCount], int half) const {
#pragma unroll
    for (int i = half * (kCount / 2); i < (half + 1) * (kCount / 2); ++i) {
      s[i] = ptx::exp2_approx(fmaf(s[i], unit[i / 2 % 2], shift[i / 2 % 2]));
    }
  }

  /// Natural logarithm of the softmax' denominator.
  __device__ float lse(int row) const {
    constexpr float kLn2 = 0.693147180559945f;
    return sum[row] == 0 ? -INFINITY : (log2f(sum[row]) - power[row]) * kLn2;
  }
};

/// The ones behind the channels of each slot of V, by all threads of a block.
template <typename Shape>
__device__ void fill_ones(ForwardMemory<Shape>& memory) {
  constexpr uint32_t kOnes = 0x38383838;  // 1 in e4m3
  constexpr int kUnits = Shape::kOnesBytes / 16;
  for (int i = threadIdx.x; i < Shape::kValueStages * kUnits; i += Shape::kThreads) {
    char* const unit = memory.v[i / kUnits] + Shape::kStepBytes + i % kUnits * 16;
    *reinterpret_cast<uint4*>(unit) = make_uint4(kOnes, kOnes, kOnes, kOnes);
  }
  ptx::fence_async_proxy();
}

/// One of the computing warpgroups, in 8-bit numbers.
template <typename Shape, Type kOut>
struct BytesComputer : TileWorker<Shape, kOut> {
  using Base = TileWorker<Shape, kOut>;
  using Base::group, Base::memory, Base::params, Base::q_parity, Base::q_slot, Base::release,
      Base::release_stored, Base::thread;
  static constexpr bool kIntegers = Shape::kLogits == Type::s8;
  // Sums of integers begin with the bits of 1.5 * 2^23: as floats they are that much more, exactly
  // while they stay below 2^22, and need no conversion.
  static constexpr float kBase = kIntegers ? 12582912.0f : 0.0f;
  static constexpr int kBaseBits = 0x4B400000;

  // Matrices of this warpgroup's queries, and of the first slots.
  wgmma::Matrix q = wgmma::k_major(ptx::shared_address(memory.q) + group * 64 * 128);
  wgmma::Matrix k = wgmma::k_major(ptx::shared_address(memory.k));
  wgmma::Matrix v = wgmma::k_major(ptx::shared_address(memory.v));
  float scale[2];  // of logits in units of q and k, times log2(e), but for the keys' scale
  float unit[2];   // with it
  float o[Shape::kDim / 2];
  uint32_t p[Shape::kKeys / 32][4];
  uint32_t keys_taken = 0, values_taken = 0;  // steps of the rings

  using Logits = float[Shape::kKeys / 2];
  using Product = wgmma::Accumulator<Shape::kLogits>[Shape::kKeys / 2];
  // Of one half of the channels: sums of all would need too many registers. The second half's have
  // the weights' own sums behind them.
  template <int kHalf>
  using Part = float[Shape::kDim / 4 + 4 * kHalf];

  __device__ static uint32_t slot_of(uint32_t step) { return step % Shape::kStages; }
  __device__ static uint32_t parity_of(uint32_t step) { return step / Shape::kStages % 2; }

  /// Q Kᵀ of the next step, as a group of its own.
  __device__ void start_logits(Product& product) {
    const uint32_t slot = slot_of(keys_taken);
    ptx::wait(&memory.k_full[slot], parity_of(keys_taken));
    const wgmma::Matrix queries = q.further(q_slot() * Shape::kQueryBytes);
    const wgmma::Matrix keys = k.further(slot * Shape::kStepBytes);
    if constexpr (kIntegers) {
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 2; ++i) product[i] = kBaseBits;
      wgmma::pin(product);
    }
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kDim / 32; ++step) {
      wgmma::multiply<Shape::kLogits>(product, queries.further(step * wgmma::kStepBytes),
                                      keys.further(step * wgmma::kStepBytes),
                                      kIntegers || step > 0);
    }
    wgmma::commit();
  }

  /// P V of the next step, of one half of the channels.
  template <int kHalf>
  __device__ void start_values(Part<kHalf>& part) {
    const uint32_t slot = slot_of(values_taken);
    if (kHalf == 0) ptx::wait(&memory.v_full[slot], parity_of(values_taken));
    const wgmma::Matrix values =
        v.further(slot * Shape::kValueBytes + kHalf * (Shape::kDim / 2) * 128);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 32; ++step) {
      wgmma::multiply<Type::e4m3>(part, p[step], values.further(step * wgmma::kStepBytes),
                                  step > 0);
    }
    wgmma::commit();
  }

  /// What a step's notes ask for.
  __device__ void amend(Logits& s, const float (&unit)[2], const StepNotes<1>& notes) const {
    // What follows from it is computed here: registers are too few to keep it.
    int thread = this->thread;
    ptx::opaque(thread);
    if (const float* const bias = notes.bias[0]; bias != nullptr) {
      constexpr float kLog2e = 1.4426950408889634f;
      const float inverse[2] = {kLog2e / unit[0], kLog2e / unit[1]};
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 2; ++i) {
        const int key = fragment::column(thread, i);
        if (key < notes.bias_from[0] || key >= notes.len[0]) continue;
        s[i] = biased(s[i], bias[key], inverse[i / 2 % 2]);
      }
    }
    if (notes.mask[0] != 0) this->mask(thread, s, 0, notes.mask[0]);
    if (notes.len[0] < Shape::kSpan) this->cut(thread, s, 0, notes.len[0]);
  }

  /// The logits of the step just made, whose slot is free then: in units of `unit` / log2(e). Of
  /// dense attention only the first step has less than all keys.
  __device__ void finish_logits(Product& product, Logits& s, float (&unit)[2], bool is_first) {
    wgmma::pin(product);
    const uint32_t slot = slot_of(keys_taken);
#pragma unroll
    for (int i = 0; i < Shape::kKeys / 2; ++i) {
      if constexpr (kIntegers) {
        s[i] = __int_as_float(product[i]);
      } else {
        s[i] = product[i];
      }
    }
    const float* const of_keys = memory.of_step[slot];
    if constexpr (Shape::kByKey) {
      int thread = this->thread;
      ptx::opaque(thread);  // see amend()
#pragma unroll
      for (int i = 0; i < Shape::kKeys / 2; i += 4) {
        const float2 both = *reinterpret_cast<const float2*>(of_keys + fragment::column(thread, i));
        s[i] = (s[i] - kBase) * both.x, s[i + 1] = (s[i + 1] - kBase) * both.y;
        s[i + 2] = (s[i + 2] - kBase) * both.x, s[i + 3] = (s[i + 3] - kBase) * both.y;
        if (i % 16 == 12) ptx::opaque(s[i + 3]);  // scales of all would need too many registers
      }
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      unit[row] = Shape::kByKey ? scale[row] : above_zero(scale[row] * of_keys[0]);
      if constexpr (kOwnBase != 0) {  // to 21 bits, so that its product with the base is exact
        unit[row] = __int_as_float((__float_as_int(unit[row]) + 4) & ~7);
      }
    }
    if constexpr (Shape::kListed) {
      const StepNotes<1>& notes = memory.steps[slot];
      if (!notes.is_plain) amend(s, unit, notes);
    } else if (is_first) {
      const int len = params.kv_len - (params.kv_len - 1) / Shape::kKeys * Shape::kKeys;
      if (len < Shape::kKeys) this->cut(thread, s, 0, len);
    }
    __syncwarp();  // all lanes have read notes and scales before one says so
    release(&memory.k_empty[slot]);
    ++keys_taken;
  }

  /// The step's O becomes part of the tile's.
  template <int kHalf>
  __device__ void finish_values(Part<kHalf>& part, BytesSoftmax& softmax) {
    wgmma::pin(part);
    if (kHalf == 1) release(&memory.v_empty[slot_of(values_taken++)]);
#pragma unroll
    for (int i = 0; i < Shape::kDim / 4; ++i) o[kHalf * (Shape::kDim / 4) + i] += part[i];
    if constexpr (kHalf == 1) {
#pragma unroll
      for (int row = 0; row < 2; ++row) softmax.sum[row] += part[Shape::kDim / 4 + 2 * row];
    }
  }

  __device__ void rescale(BytesSoftmax& softmax, const float (&keep)[2]) {
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; ++i) o[i] *= keep[i / 2 % 2];
#pragma unroll
    for (int row = 0; row < 2; ++row) softmax.sum[row] *= keep[row];
  }

  __device__ void make_operand(const Logits& s) {
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 32; ++step) {
      fragment::to_operand_e4m3(s, step, p[step]);
    }
  }

  // What is subtracted from sums of integers, as part of the shift.
  static constexpr float kOwnBase = Shape::kByKey ? 0 : kBase;

  /// The weights of a step whose logits come. Returns whether what so far was summed up is to be
  /// multiplied by `keep`.
  __device__ bool take_weights(bool is_first, BytesSoftmax& softmax, float (&keep)[2]) {
    Product product;
    Logits s;
    float unit[2];
    start_logits(product);
    wgmma::wait<0>();
    finish_logits(product, s, unit, is_first);
    const bool changes = softmax.begin(unit, kOwnBase, s, keep);
    softmax.weigh(unit, s, 0);
    softmax.weigh(unit, s, 1);
    make_operand(s);
    return changes;
  }

  /// The products with the weights.
  __device__ void take_values(BytesSoftmax& softmax) {
    Part<0> low;
    start_values<0>(low);
    wgmma::wait<0>();
    finish_values<0>(low, softmax);
    Part<1> high;
    start_values<1>(high);
    wgmma::wait<0>();
    finish_values<1>(high, softmax);
  }

  /// All steps of a tile, at least one: products and softmax of this warpgroup side by side. O is
  /// 0.
  __device__ void attend(int steps, BytesSoftmax& softmax) {
    float keep[2];
    take_weights(true, softmax, keep);
    release_stored();
#pragma unroll 1
    for (int i = 1; i < steps; ++i) {
      Product product;
      Logits s;
      float unit[2];
      Part<1> high;  // in the same registers
      auto& low = reinterpret_cast<Part<0>&>(high);
      start_logits(product);
      start_values<0>(low);
      wgmma::wait<1>();
      finish_logits(product, s, unit, false);
      const bool changes = softmax.begin(unit, kOwnBase, s, keep);
      softmax.weigh(unit, s, 0);
      wgmma::wait<0>();
      finish_values<0>(low, softmax);
      start_values<1>(high);
      softmax.weigh(unit, s, 1);
      wgmma::wait<0>();
      finish_values<1>(high, softmax);
      if (changes) rescale(softmax, keep);
      make_operand(s);
    }
    take_values(softmax);
  }

  /// The same one after the other, with fewer registers.
  __device__ void attend_alone(int steps, BytesSoftmax& softmax) {
    release_stored();
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      float keep[2];
      const bool changes = take_weights(i == 0, softmax, keep);
      if (changes) rescale(softmax, keep);
      take_values(softmax);
    }
  }

  /// Divides and writes.
  __device__ void write(const TileNotes& tile, BytesSoftmax& softmax) {
    ptx::opaque(this->thread);  // see amend()
    const int32_t* const places = this->places_of(tile);
    const int64_t of_head = static_cast<int64_t>(tile.item) * params.heads + tile.head;
    float share[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      share[row] = softmax.sum[row] == 0 ? 0 : 1 / softmax.sum[row];
      if (this->writes_lse(tile, row)) {
        const int64_t at = of_head * params.q_len + tile.begin + group * 64 +
                           fragment::first_row(thread) + 8 * row;
        const float more = params.scales.lse == nullptr ? 0 : params.scales.lse[at];
        this->write_lse(tile, places, row, softmax.lse(row) + more);
      }
    }
    const int64_t kv_head = of_head / params.heads_per_kv;
    const float* const of_values = params.scales.v + kv_head * Shape::kDim;
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; i += 4) {
      const float2 both = *reinterpret_cast<const float2*>(of_values + fragment::column(thread, i));
      o[i] *= share[0] * both.x, o[i + 1] *= share[0] * both.y;
      o[i + 2] *= share[1] * both.x, o[i + 3] *= share[1] * both.y;
    }
    this->store(tile, places, o);
  }

  /// Of the tile's queries, as far as there are any.
  __device__ void load_scales(const TileNotes& tile) {
    const int64_t of_head = static_cast<int64_t>(tile.item) * params.heads + tile.head;
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const int own = tile.begin + group * 64 + fragment::first_row(thread) + 8 * row;
      scale[row] =
          own < params.q_len
              ? above_zero(params.scales.q[of_head * params.q_len + own] * params.scale_log2)
              : 1;
    }
  }

  /// Of a unit: hidden logits stay -inf, NaN is one.
  __device__ static float above_zero(float x) { return x < 1e-37f ? 1e-37f : x; }

  __device__ void compute_all() {
    while (true) {
      ptx::wait(&memory.q_full[q_slot()], q_parity());
      const TileNotes& tile = memory.tiles[q_slot()];
      const int steps = tile.steps;
      if (steps < 0) break;
      BytesSoftmax softmax;
#pragma unroll
      for (float& x : o) x = 0;
      if (steps == 0) {
        release_stored();
      } else {
        load_scales(tile);
        if constexpr (Shape::kByKey) {  // scales of keys do not fit beside products
          attend_alone(steps, softmax);
        } else {
          attend(steps, softmax);
        }
      }
      write(tile, softmax);
    }
    if (thread == 0) ptx::bulk_wait_read<0>();
  }
};

}  // namespace fovea::kernels::sm90
