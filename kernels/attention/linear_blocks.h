#pragma once

#include "kernels/attention/block_sparse.h"

// Linear attention whose keys are taken block by block (Sparse-Linear Attention, Zhang et al.,
// 2025, section 4.2), in bf16 with fp32 sums: states of blocks of keys; which of them each block of
// queries takes, as factors of a matrix product that adds them up; what queries make of their sum.

namespace fovea::kernels {

/// What is made of each row x first: softmax over its channels, elu(x) + 1, or relu(x); then it is
/// rounded to bf16.
enum class LinearFeature { softmax, elu_plus_one, relu };

/// Blocks of one side: all heads and items have the same ones, of up to kMostLinearRows rows.
struct LinearBlocks {
  const int32_t* offsets = nullptr;  ///< [blocks + 1] positions; what else than ascends is empty
  int64_t blocks = 0, len = 0;
  RowOrder order;  ///< of heads: rows of positions; one that is not there counts nothing
  int32_t most_rows = 0;
};
constexpr int kMostLinearRows = 128;

struct LinearStatesArgs {
  int64_t batch = 0, heads = 0;
  int64_t dim = 0;  ///< 64 or 128
  HeadRows k, v;    ///< [batch, heads, len, dim] bf16
  LinearBlocks keys;
  LinearFeature feature = LinearFeature::softmax;
  void* states = nullptr;   ///< bf16 [batch, heads, blocks, dim, dim]: sum of phi(k)^T v
  float* totals = nullptr;  ///< [batch, heads, blocks, dim]: sum of phi(k)
};

/// Which blocks of keys each block of queries takes: those of one class.
struct LinearTakenArgs {
  int64_t batch = 0, heads = 0;
  int64_t dim = 0;                            ///< 64 or 128
  int64_t rows = 0, blocks = 0;               ///< blocks of queries, of keys
  const uint8_t* classes = nullptr;           ///< [rows, blocks] of each head
  int64_t batch_stride = 0, head_stride = 0;  ///< of classes; 0 where they are shared
  uint8_t taken = 0;
  const float* totals = nullptr;  ///< [batch, heads, blocks, dim]
  void* factors = nullptr;        ///< bf16 [batch, heads, rows, blocks]: 1 where taken, else 0
  float* sums = nullptr;          ///< [batch, heads, rows, dim] of the totals that are taken
};

/// out = added + (phi(q) state / (phi(q) total + epsilon)) weight^T + bias, the fraction 0 where
/// phi(q) total is 0.
struct LinearOutArgs {
  int64_t batch = 0, heads = 0, dim = 0;
  HeadRows q;
  LinearBlocks queries;
  LinearFeature feature = LinearFeature::softmax;
  const void* states = nullptr;   ///< bf16 [batch, heads, blocks, dim, dim]
  const float* totals = nullptr;  ///< [batch, heads, blocks, dim]
  float epsilon = 0;
  const void* weight = nullptr;  ///< bf16 [dim, dim], or null
  const void* bias = nullptr;    ///< [dim], or null
  DType bias_type = DType::f32;  ///< or bf16
  HeadRows added;                ///< bf16 [batch, heads, len, dim], or null data
  MutableHeadRows out;           ///< the same; rows of no block are left as they are
};

/// The same on both but for the last bits; arrays are on the side that computes. Of rows, `data`
/// and strides are multiples of 16 bytes.
void linear_states_cpu(const LinearStatesArgs& args);
Status linear_states_cuda(const LinearStatesArgs& args, CudaTarget target);
void linear_taken_cpu(const LinearTakenArgs& args);
Status linear_taken_cuda(const LinearTakenArgs& args, CudaTarget target);
void linear_out_cpu(const LinearOutArgs& args);
Status linear_out_cuda(const LinearOutArgs& args, CudaTarget target);

/// What linear_out_cuda chooses from: compute capability 9.0a, and 8.0 and newer.
Status linear_out_sm90(const LinearOutArgs& args, CudaTarget target);
Status linear_out_sm80(const LinearOutArgs& args, CudaTarget target);

}  // namespace fovea::kernels
