#pragma once

#include <cstdint>

#include "kernels/attention/forward_tile_sm90.cuh"

// The computing warpgroups of the forward pass on compute capability 9.0a in 8-bit numbers: q and k
// in e4m3 or integers, v in e4m3, transposed, and the softmax' weights in e4m3.
//
// Weights are quantized relative to the largest logit of a row. Either all logits are computed
// twice, first for that alone; or, `kOnline`, the largest so far is taken for it.
//
// Steps overlap as those of forward_sm90.cuh do. What differs: the matrix units keep 14 bits of a
// sum of e4m3 products, so that a step's O is a sum of its own and added to that of the tile in
// fp32, times the factor that a new largest logit asks for (in two levels, as in SageAttention2,
// Zhang et al. 2024, arXiv:2411.10958). Weights stay in registers: the quantizer of v laid its keys
// out for that.

namespace fovea::kernels::sm90 {

/// The softmax of a thread's two rows, of logits in units that change from step to step. Weights
/// are 448 for the largest logit so far.
struct BytesSoftmax {
  static constexpr float kLog2Most = 8.807354922057604f;  // log2(448)
  float largest[2] = {-INFINITY, -INFINITY};              // logits * log2(e)
  float sum[2] = {0, 0};                                  // of this thread's weights

  float shift[2];  // of the step at hand
  float total[4];  // of its weights, in four chains

  /// Begins a step of logits (s - base) * unit / log2(e): what so far was summed up is to be
  /// multiplied by `keep`.
  template <int kCount>
  __device__ void begin(const float (&unit)[2], float base, const float (&s)[kCount],
                        float (&keep)[2]) {
    float top[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
    for (int i = 4; i < kCount; ++i) top[i % 4] = fmaxf(top[i % 4], s[i]);
    float now[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) now[row] = fmaxf(top[2 * row], top[2 * row + 1]);
#pragma unroll
    for (int lanes = 1; lanes <= 2; ++lanes) {
      const float others[2] = {__shfl_xor_sync(0xffffffff, now[0], lanes),
                               __shfl_xor_sync(0xffffffff, now[1], lanes)};
      now[0] = fmaxf(now[0], others[0]), now[1] = fmaxf(now[1], others[1]);
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      now[row] = fmaxf(largest[row], __fmul_rn(now[row] - base, unit[row]));
      // A row of -inf alone has weights 0, not NaN.
      const float zero = now[row] == -INFINITY ? 0 : now[row];
      shift[row] = fmaf(-base, unit[row], kLog2Most - zero);
      // The base is large and the shift rounded: this is what is really subtracted.
      const float exact = kLog2Most - fmaf(base, unit[row], shift[row]);
      keep[row] = ptx::exp2_approx(largest[row] - exact);
      largest[row] = now[row] == -INFINITY ? now[row] : exact;
      sum[row] *= keep[row];
    }
#pragma unroll
    for (float& x : total) x = 0;
  }

  /// Half of the step's logits become weights.
  template <int kCount>
  __device__ void weigh(const float (&unit)[2], float base, float (&s)[kCount], int half) {
#pragma unroll
    for (int i = half * (kCount / 2); i < (half + 1) * (kCount / 2); ++i) {
      s[i] = ptx::exp2_approx(fmaf(s[i] - base, unit[i / 2 % 2], shift[i / 2 % 2]));
      total[i % 4] += s[i];
    }
  }

  /// Logits, in the same units, of which only the largest is wanted: so far of this thread's.
  template <int kCount>
  __device__ void look(const float (&unit)[2], float base, const float (&s)[kCount]) {
    float top[4] = {s[0], s[1], s[2], s[3]};
#pragma unroll
    for (int i = 4; i < kCount; ++i) top[i % 4] = fmaxf(top[i % 4], s[i]);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float now = fmaxf(top[2 * row], top[2 * row + 1]);
      largest[row] = fmaxf(largest[row], (now - base) * unit[row]);
    }
  }
  /// All have been looked at.
  __device__ void join_largest() {
#pragma unroll
    for (int lanes = 1; lanes <= 2; ++lanes) {
#pragma unroll
      for (float& x : largest) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lanes));
    }
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      shift[row] = kLog2Most - (largest[row] == -INFINITY ? 0 : largest[row]);
    }
  }
  /// Begins a step of logits of which all have been looked at.
  __device__ void begin_known() {
#pragma unroll
    for (float& x : total) x = 0;
  }
  __device__ void end() {
#pragma unroll
    for (int row = 0; row < 2; ++row) sum[row] += total[2 * row] + total[2 * row + 1];
  }

  /// The sums of all four threads of a row.
  __device__ void join() {
#pragma unroll
    for (float& x : sum) {
      x += __shfl_xor_sync(0xffffffff, x, 1);
      x += __shfl_xor_sync(0xffffffff, x, 2);
    }
  }
  /// Natural logarithm of the softmax' denominator; after join().
  __device__ float lse(int row) const {
    constexpr float kLn2 = 0.693147180559945f;
    return sum[row] == 0 ? -INFINITY : (largest[row] + log2f(sum[row]) - kLog2Most) * kLn2;
  }
};

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
  using Part = float[Shape::kDim / 4];

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

  /// P V of the next step, of one half of the channels: sums of all would need too many registers.
  __device__ void start_values(Part& part, int half) {
    const uint32_t slot = slot_of(values_taken);
    if (half == 0) ptx::wait(&memory.v_full[slot], parity_of(values_taken));
    const wgmma::Matrix values =
        v.further(slot * Shape::kStepBytes + half * (Shape::kDim / 2) * 128);
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
      }
    }
    const float of_all = Shape::kByKey ? 1 : of_keys[0];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float own = scale[row] * of_all;
      unit[row] = own < 1e-37f ? 1e-37f : own;  // hidden logits stay -inf, NaN is one
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

  /// The step's O becomes part of the tile's, which is of logits before the last rescale.
  __device__ void finish_values(Part& part, int half, const float (&keep)[2]) {
    wgmma::pin(part);
    if (half == 1) release(&memory.v_empty[slot_of(values_taken++)]);
#pragma unroll
    for (int i = 0; i < Shape::kDim / 4; ++i) {
      float& sum = o[half * (Shape::kDim / 4) + i];
      sum = Shape::kTwice ? sum + part[i] : fmaf(sum, keep[i / 2 % 2], part[i]);
    }
  }

  __device__ void make_operand(const Logits& s) {
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 32; ++step) {
      fragment::to_operand_e4m3(s, step, p[step]);
    }
  }

  /// The compiler waits for products before exponentials, unless something of these is stored
  /// first.
  __device__ void hold(const BytesSoftmax& softmax) {
    memory.held[group * 4 + thread / 32] =
        softmax.total[0] + softmax.total[1] + softmax.total[2] + softmax.total[3];
  }

  // What is subtracted from sums of integers: in one pass that is part of the shift.
  static constexpr float kOwnBase = Shape::kByKey ? 0 : kBase;
  static constexpr float kWeighBase = Shape::kTwice ? kOwnBase : 0;

  /// A step's logits are there.
  __device__ void begin(BytesSoftmax& softmax, const Logits& s, const float (&unit)[2],
                        float (&keep)[2]) const {
    if constexpr (Shape::kTwice) {
      softmax.begin_known();
    } else {
      softmax.begin(unit, kOwnBase, s, keep);
    }
  }

  /// The largest logits of a tile.
  __device__ void look_at_all(int steps, BytesSoftmax& softmax) {
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      Product product;
      Logits s;
      float unit[2];
      start_logits(product);
      wgmma::wait<0>();
      finish_logits(product, s, unit, i == 0);
      softmax.look(unit, kOwnBase, s);
    }
    softmax.join_largest();
  }

  /// All steps of a tile, at least one: products and softmax of this warpgroup side by side. O is
  /// 0.
  __device__ void attend(int steps, BytesSoftmax& softmax) {
    if constexpr (Shape::kTwice) look_at_all(steps, softmax);
    float keep[2];
    {
      Product product;
      Logits s;
      float unit[2];
      start_logits(product);
      wgmma::wait<0>();
      finish_logits(product, s, unit, true);
      begin(softmax, s, unit, keep);
      softmax.weigh(unit, kWeighBase, s, 0);
      softmax.weigh(unit, kWeighBase, s, 1);
      softmax.end();
      make_operand(s);
    }
    release_stored();
#pragma unroll 1
    for (int i = 1; i < steps; ++i) {
      Product product;
      Logits s;
      Part part;
      float unit[2], next[2];
      take_turn();
      start_logits(product);
      start_values(part, 0);
      pass_turn();
      wgmma::wait<1>();
      finish_logits(product, s, unit, false);
      begin(softmax, s, unit, next);
      softmax.weigh(unit, kWeighBase, s, 0);
      hold(softmax);
      wgmma::wait<0>();
      finish_values(part, 0, keep);
      start_values(part, 1);
      softmax.weigh(unit, kWeighBase, s, 1);
      hold(softmax);
      wgmma::wait<0>();
      finish_values(part, 1, keep);
      softmax.end();
      make_operand(s);
      if constexpr (!Shape::kTwice) keep[0] = next[0], keep[1] = next[1];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Part part;
      start_values(part, half);
      wgmma::wait<0>();
      finish_values(part, half, keep);
    }
  }

  /// Divides and writes.
  __device__ void write(const TileNotes& tile, BytesSoftmax& softmax) {
    ptx::opaque(this->thread);  // see amend()
    softmax.join();
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
      scale[row] = own < params.q_len
                       ? params.scales.q[of_head * params.q_len + own] * params.scale_log2
                       : 1;
    }
  }

  /// Turns of the two warpgroups; the first one begins.
  __device__ void begin_turns() const {
    if (group == 1) pass_turn();
  }
  __device__ void take_turn() const {
    if constexpr (Shape::kTurns) ptx::named_sync(kFirstTurn + group, 256);
  }
  __device__ void pass_turn() const {
    if constexpr (Shape::kTurns) ptx::named_arrive(kFirstTurn + 1 - group, 256);
  }
  __device__ void end_turns() const {
    if (group == 0) take_turn();
  }
  static constexpr int kFirstTurn = 4;  // behind the barriers of results

  __device__ void compute_all() {
    begin_turns();
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
        attend(steps, softmax);
      }
      write(tile, softmax);
    }
    end_turns();
    if (thread == 0) ptx::bulk_wait_read<0>();
  }
};

}  // namespace fovea::kernels::sm90
