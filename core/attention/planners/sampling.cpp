#include "core/attention/planners/sampling.h"

#include <bit>
#include <cstdint>

#include <ATen/ATen.h>

namespace fovea {
namespace {

// An unsigned shift; tensors have signed integers only.
at::Tensor shifted(const at::Tensor& x, int64_t bits) {
  return x.bitwise_right_shift(bits).bitwise_and((int64_t{1} << (64 - bits)) - 1);
}

int64_t constant(uint64_t bits) { return std::bit_cast<int64_t>(bits); }

}  // namespace

at::Tensor random_below(const at::Tensor& counter, int64_t seed, const at::Tensor& bound) {
  const uint64_t start = static_cast<uint64_t>(seed) * 0xd1342543de82ef95ull;
  at::Tensor x = (counter + 1) * constant(0x9e3779b97f4a7c15ull) + constant(start);
  x = (x.bitwise_xor(shifted(x, 30))) * constant(0xbf58476d1ce4e5b9ull);
  x = (x.bitwise_xor(shifted(x, 27))) * constant(0x94d049bb133111ebull);
  x = x.bitwise_xor(shifted(x, 31));
  return shifted(shifted(x, 33) * bound, 31);
}

}  // namespace fovea
