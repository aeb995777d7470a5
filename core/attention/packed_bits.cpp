#include "core/attention/packed_bits.h"

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

// Where each number of a byte begins.
at::Tensor shifts(const at::Tensor& like, int64_t bits) {
  FOVEA_ASSERT(bits == 1 || bits == 2 || bits == 4 || bits == 8);
  return at::arange(0, 8, bits, like.options().dtype(at::kByte));
}

}  // namespace

at::Tensor pack_bits(const at::Tensor& values, int64_t bits) {
  const at::Tensor shift = shifts(values, bits);
  const int64_t each = shift.size(0), count = values.size(-1), bytes = (count + each - 1) / each;
  std::vector<int64_t> shape = values.sizes().vec();
  shape.back() = bytes * each;
  at::Tensor padded = at::zeros(shape, shift.options());
  padded.slice(-1, 0, count).copy_(values);
  shape.back() = bytes;
  shape.push_back(each);
  return padded.view(shape).bitwise_left_shift(shift).sum(-1, /*keepdim=*/false, at::kByte);
}

at::Tensor unpack_bits(const at::Tensor& packed, int64_t bits, int64_t count) {
  return packed.unsqueeze(-1)
      .bitwise_right_shift(shifts(packed, bits))
      .bitwise_and((1 << bits) - 1)
      .flatten(-2)
      .slice(-1, 0, count)
      .contiguous();
}

}  // namespace fovea
