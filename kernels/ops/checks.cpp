#include <limits>

#include "kernels/ops/gate_residual.h"
#include "kernels/ops/layer_norm_modulate.h"
#include "kernels/ops/rms_norm.h"
#include "kernels/ops/rope.h"

namespace fovea::kernels {
namespace {

constexpr Status invalid(const char* message) { return {StatusCode::invalid, message}; }

// Index arithmetic inside a row is 32-bit; the slack keeps column + block step below 2^31.
constexpr int64_t kMaxDim = std::numeric_limits<int32_t>::max() - (1 << 20);
// Rows are blocks of a CUDA grid's x dimension.
constexpr int64_t kMaxRows = std::numeric_limits<int32_t>::max();

Status check_sizes(int64_t num_rows, int64_t dim) {
  if (num_rows < 0 || dim < 0) return invalid("negative size");
  if (dim > kMaxDim) return {StatusCode::unsupported, "more than 2^31 - 2^20 channels"};
  if (num_rows > kMaxRows) return {StatusCode::unsupported, "more than 2^31 - 1 rows"};
  return {};
}

Status check_rows(ConstRows x, Rows y, int64_t num_rows) {
  if (x.dtype != y.dtype) return invalid("the output has another dtype than the input");
  if (num_rows > 0 && (!x.data || !y.data)) return invalid("null data");
  return {};
}

Status check_tables(const RotaryTables& rope, int64_t dim) {
  if (rope.head_dim < 2 || rope.head_dim % 2 != 0) return invalid("head_dim must be even");
  if (dim % rope.head_dim != 0) return invalid("dim must be a multiple of head_dim");
  if (rope.seq_len < 1 || !rope.cos || !rope.sin) return invalid("empty rotary tables");
  return {};
}

}  // namespace

Status check(const RmsNormArgs& args) {
  if (const Status s = check_sizes(args.num_rows, args.dim); !s.ok()) return s;
  if (const Status s = check_rows(args.x, args.y, args.num_rows); !s.ok()) return s;
  if (args.weight.data && args.weight.dtype != DType::f32 && args.weight.dtype != args.x.dtype) {
    return {StatusCode::unsupported, "the weight is neither f32 nor of the input's dtype"};
  }
  return {};
}

Status check(const RmsNormRopeArgs& args) {
  if (const Status s = check(args.norm); !s.ok()) return s;
  return check_tables(args.rope, args.norm.dim);
}

Status check(const RopeArgs& args) {
  if (const Status s = check_sizes(args.num_rows, args.dim); !s.ok()) return s;
  if (const Status s = check_rows(args.x, args.y, args.num_rows); !s.ok()) return s;
  return check_tables(args.rope, args.dim);
}

Status check(const LayerNormModulateArgs& args) {
  if (const Status s = check_sizes(args.num_rows, args.dim); !s.ok()) return s;
  if (const Status s = check_rows(args.x, args.y, args.num_rows); !s.ok()) return s;
  if (!args.weight != !args.bias) return invalid("weight without bias");
  if (!args.scale.data != !args.shift.data) return invalid("scale without shift");
  if (args.rows_per_item < 1) return invalid("rows_per_item below 1");
  return {};
}

Status check(const GateResidualArgs& args) {
  if (const Status s = check_sizes(args.num_rows, args.dim); !s.ok()) return s;
  if (const Status s = check_rows(args.x, args.out, args.num_rows); !s.ok()) return s;
  if (const Status s = check_rows(args.y, args.out, args.num_rows); !s.ok()) return s;
  if (args.num_rows > 0 && !args.gate.data) return invalid("null gate");
  if (args.rows_per_item < 1) return invalid("rows_per_item below 1");
  return {};
}

}  // namespace fovea::kernels
