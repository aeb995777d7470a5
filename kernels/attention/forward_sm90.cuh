#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/attention/forward_bytes_sm90.cuh"
#include "kernels/attention/forward_tile_sm90.cuh"
#include "kernels/attention/packed_loader_sm90.cuh"

// The forward pass of softmax attention on compute capability 9.0a.
//
// A block has one warpgroup that loads and kGroups that compute, 64 queries each. The loading warp
// takes tiles of queries one after the other; of each it tells the others what there is to do,
// loads Q, then the keys step by step into two rings, of K and of V (of packed lists three warps do
// it). A computing warpgroup starts S = Q Kᵀ of a step and O += P V of the step before it together,
// and makes P of the former while the matrix units still work on the latter (FlashAttention-3, Shah
// et al. 2024, arXiv:2407.08608, section 3.2). The softmax is online (Milakov and Gimelshein 2018,
// arXiv:1805.02867); sums of a row are kept by four threads and joined at the end.

namespace fovea::kernels::sm90 {

/// One of the computing warpgroups, in 16-bit numbers.
template <typename Shape, Type kType>
struct Computer : TileWorker<Shape, kType> {
  using Base = TileWorker<Shape, kType>;
  using Base::group, Base::k_place, Base::kPieces, Base::maps, Base::memory, Base::params,
      Base::q_parity, Base::q_slot, Base::release, Base::release_stored, Base::thread,
      Base::v_place;

  // Matrices of this warpgroup's queries, and of the first slots.
  wgmma::Matrix q = wgmma::k_major(ptx::shared_address(memory.q) + group * 64 * 128);
  wgmma::Matrix k = wgmma::k_major(ptx::shared_address(memory.k));
  wgmma::Matrix v = wgmma::n_major(ptx::shared_address(memory.v), Shape::kSpan * 128);
  int lens = 0;  // of the spans whose weights P has, 8 bits each, where one is not full; or 0
  float o[Shape::kDim / 2];
  float s[Shape::kKeys / 2];
  uint32_t p[Shape::kKeys / 16][4];

  /// S = Q Kᵀ of the ring's next step, as a group of its own.
  __device__ void start_logits() {
    const wgmma::Matrix queries = Shape::kSlots == 1 ? q : q.further(q_slot() * Shape::kQueryBytes);
    const wgmma::Matrix keys = k.further(k_place.slot * Shape::kStepBytes);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kDim / 16; ++step) {
      const int inside = step % 4 * wgmma::kStepBytes;
      wgmma::multiply<kType>(s, queries.further(step / 4 * Shape::kQueries * 128 + inside),
                             keys.further(step / 4 * Shape::kKeys * 128 + inside), step > 0);
    }
    wgmma::commit();
  }

  /// O += P V of the ring's next step.
  __device__ void start_values(bool is_first) {
    const wgmma::Matrix values = v.further(v_place.slot * Shape::kStepBytes);
    wgmma::fence();
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      constexpr int kSteps = Shape::kSpan / 16;  // of a piece
      constexpr int kPieceBytes = Shape::kStepBytes / kPieces;
      const int rows = step / kSteps * kPieceBytes + step % kSteps * 2048;
      wgmma::multiply<kType, true>(o, p[step], values.further(rows), step > 0 || !is_first);
    }
    wgmma::commit();
  }

  /// What a step's notes ask for.
  __device__ void amend(const StepNotes<kPieces>& notes) {
    int thread = this->thread;
    ptx::opaque(thread);  // see write()
#pragma unroll
    for (int piece = 0; piece < kPieces; ++piece) {
      constexpr int kCount = Shape::kSpan / 2;
      float* const own = s + piece * kCount;
      const int len = notes.len[piece];
      if constexpr (!Shape::kPacked) {
        if (const float* const bias = notes.bias[piece]; bias != nullptr) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            const int key = fragment::column(thread, i);
            if (key < notes.bias_from[piece] || key >= len) continue;
            own[i] = biased(own[i], bias[key], params.inverse_scale);
          }
        }
        if (notes.mask[piece] != 0) this->mask(thread, s, piece, notes.mask[piece]);
      }
      if (len < Shape::kSpan) this->cut(thread, s, piece, len);
      lens |= len << 8 * piece;
    }
  }

  /// Values behind the end of a span may be anything, and 0 times NaN is NaN: they become 0. Each
  /// warpgroup does it for itself, so that it needs not wait for another one.
  __device__ void clear_tails() const {
    if constexpr (Shape::kListed) {
      if (lens == 0) return;
      char* const step = memory.v[v_place.slot];
#pragma unroll 1
      for (int piece = 0; piece < kPieces; ++piece) {
        const int first = lens >> 8 * piece & 255;
#pragma unroll 1
        for (int row = first + thread / 8; row < Shape::kSpan; row += 16) {
          char* const unit =
              step + piece * (Shape::kStepBytes / kPieces) + row * 128 + thread % 8 * 16;
#pragma unroll
          for (int panel = 0; panel < Shape::kPanels; ++panel) {
            *reinterpret_cast<uint4*>(unit + panel * Shape::kSpan * 128) = make_uint4(0, 0, 0, 0);
          }
        }
      }
      ptx::fence_async_proxy();
      ptx::named_sync(1 + group, 128);
    }
  }

  __device__ void make_operand() {
#pragma unroll
    for (int step = 0; step < Shape::kKeys / 16; ++step) {
      fragment::to_operand<kType>(s, step, p[step]);
    }
  }

  __device__ void rescale(const float (&keep)[2]) {
    if (!__any_sync(0xffffffff, keep[0] != 1 || keep[1] != 1)) return;
#pragma unroll
    for (int i = 0; i < Shape::kDim / 2; ++i) o[i] *= keep[i / 2 % 2];
  }

  /// The logits of the step just made, whose slot is free then. Of dense attention only the first
  /// step has less than all keys.
  __device__ void finish_logits(bool is_first) {
    wgmma::pin(s);
    if constexpr (Shape::kListed) {
      const StepNotes<kPieces>& notes = memory.steps[k_place.slot];
      lens = 0;
      if (!notes.is_plain) amend(notes);
      __syncwarp();  // all lanes have read the notes before one says so
    } else if (is_first) {
      const int len = params.kv_len - (params.kv_len - 1) / Shape::kKeys * Shape::kKeys;
      if (len < Shape::kKeys) this->cut(thread, s, 0, len);
    }
    release(&memory.k_empty[k_place.slot]);
    k_place.next();
  }

  /// Logits of the next step, and what becomes of them.
  __device__ void take_logits(bool is_first) {
    ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
    start_logits();
    wgmma::wait<0>();
    finish_logits(is_first);
  }
  __device__ void finish_values() {
    wgmma::pin(o);
    release(&memory.v_empty[v_place.slot]);
    v_place.next();
  }

  /// All steps of a tile, at least one: products and softmax of this warpgroup side by side.
  __device__ void attend(int steps, OnlineSoftmax& softmax) {
    float keep[2];
    take_logits(true);
    softmax.step(params.scale_log2, s, keep);
    make_operand();
    if constexpr (Shape::kSlots > 1) release_stored();
    for (int i = 1; i < steps; ++i) {
      ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
      start_logits();
      ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
      clear_tails();
      start_values(i == 1);
      wgmma::wait<1>();
      finish_logits(false);
      softmax.step(params.scale_log2, s, keep);
      if constexpr (Shape::kHold)
        memory.held[group * 4 + thread / 32] = softmax.sum[0] + softmax.sum[1];
      wgmma::wait<0>();
      finish_values();
      make_operand();
      rescale(keep);
    }
    ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
    clear_tails();
    start_values(steps == 1);
    wgmma::wait<0>();
    finish_values();
  }

  /// The same one after the other, with fewer registers: other blocks work meanwhile. O is 0.
  __device__ void attend_alone(int steps, OnlineSoftmax& softmax) {
    float keep[2];
    bool is_first = true;
    do {
      take_logits(is_first);
      softmax.step(params.scale_log2, s, keep);
      make_operand();
      if (!is_first) rescale(keep);
      is_first = false;
      wgmma::pin(o);
      ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
      clear_tails();
      start_values(false);
      wgmma::wait<0>();
      finish_values();
    } while (--steps > 0);
  }

  /// The same of a tile that has no queries for this warpgroup: slots are to be freed nevertheless.
  __device__ void pass(int steps) {
#pragma unroll 1
    for (int i = 0; i < steps; ++i) {
      ptx::wait(&memory.k_full[k_place.slot], k_place.parity);
      release(&memory.k_empty[k_place.slot]);
      k_place.next();
      ptx::wait(&memory.v_full[v_place.slot], v_place.parity);
      release(&memory.v_empty[v_place.slot]);
      v_place.next();
    }
  }

  /// Divides and writes.
  __device__ void write(const TileNotes& tile, OnlineSoftmax& softmax) {
    ptx::opaque(this->thread);  // places are computed here: registers are too few to keep them
    softmax.join();
    const int32_t* const places = this->places_of(tile);
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const float share = softmax.sum[row] == 0 ? 0 : 1 / softmax.sum[row];
#pragma unroll
      for (int i = 2 * row; i < Shape::kDim / 2; i += 4) o[i] *= share, o[i + 1] *= share;
      if (this->writes_lse(tile, row)) {
        this->write_lse(tile, places, row, softmax.lse(params.scale_log2, row));
      }
    }
    this->store(tile, places, o);
  }

  __device__ void compute_all() {
    while (true) {
      ptx::wait(&memory.q_full[q_slot()], q_parity());
      const TileNotes& tile = memory.tiles[q_slot()];
      const int steps = tile.steps;
      if (steps < 0) break;
      OnlineSoftmax softmax;
      const bool is_idle = steps == 0 || (!Shape::kSmall && tile.len <= group * 64);
      if (Shape::kSmall || is_idle) {
#pragma unroll
        for (float& x : o) x = 0;
      }
      if (is_idle) {
        if constexpr (Shape::kSlots > 1) release_stored();
        pass(steps);
      } else {
        Shape::kSmall ? attend_alone(steps, softmax) : attend(steps, softmax);
      }
      write(tile, softmax);
    }
    if (Shape::kSlots > 1 && thread == 0) ptx::bulk_wait_read<0>();
  }
};

/// Grid: as many blocks as are to run at a time; see `draw`.
template <typename Shape, Type kType>
__global__ void __launch_bounds__(Shape::kThreads, Shape::kBlocks)
    forward_kernel(const __grid_constant__ ForwardMaps<Shape::kHeights> maps,
                   const __grid_constant__ ForwardParams params) {
#ifdef FOVEA_SM90A
  auto& memory = *reinterpret_cast<ForwardMemory<Shape>*>(ptx::dynamic_memory());
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shape::kSlots; ++i) {
      ptx::barrier_init(&memory.q_full[i], 1);
      ptx::barrier_init(&memory.q_empty[i], Shape::kGroups);
    }
    for (int i = 0; i < Shape::kStages; ++i) {
      ptx::barrier_init(&memory.k_full[i], 1);
      ptx::barrier_init(&memory.k_empty[i], 4 * Shape::kGroups);
    }
    for (int i = 0; i < Shape::kValueStages; ++i) {
      ptx::barrier_init(&memory.v_full[i], 1);
      ptx::barrier_init(&memory.v_empty[i], 4 * Shape::kGroups);
    }
    if constexpr (Shape::kPacked) {
      ptx::barrier_init(&memory.packed.found, 1);
      ptx::barrier_init(&memory.packed.taken, 2);
    }
    ptx::fence_barrier_init();
  }
  if constexpr (Shape::kIsBytes) fill_ones(memory);
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  // As one lane has it, so that the compiler knows that all have the same.
  const int warpgroup = __shfl_sync(0xffffffff, thread / 128, 0);
  if (warpgroup == Shape::kGroups) {
    if constexpr (!Shape::kSmall) ptx::give_registers<Shape::kLoadRegisters>();
    const int warp = thread / 32 % 4, lane = thread % 32;
    if constexpr (Shape::kPacked) {
      if (warp == 0) PackedLoader<Shape, false>{params, maps, memory, lane}.run();
      if (warp == 1) PackedLoader<Shape, true>{params, maps, memory, lane}.run();
      if (warp == 2) PackedScout<Shape>{params, maps, memory, lane}.run();
    } else if (warp == 0) {
      Loader<Shape>{params, maps, memory, lane}.load_all();
    }
  } else {
    if constexpr (!Shape::kSmall) ptx::take_registers<Shape::kComputeRegisters>();
    using Worker =
        std::conditional_t<Shape::kIsBytes, BytesComputer<Shape, kType>, Computer<Shape, kType>>;
    Worker{{params, maps, memory, warpgroup, thread % 128}}.compute_all();
  }
#endif
}

}  // namespace fovea::kernels::sm90
