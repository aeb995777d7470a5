#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fovea::kernels {

/// What became of lists that bytes have decided on.
struct FuzzVerdict {
  enum class Outcome { refused, right, wrong };
  Outcome outcome = Outcome::right;
  std::string text;  ///< why refused, or what is wrong
};

/// Makes a tiny attention problem with blocks, bits, lengths and orders as the bytes say, writes
/// where they say into the lists, and hands it to the CPU kernel if `check` lets it: the result
/// must be that of dense attention with the lists as a mask, in fp64. Sizes of arrays are not lied
/// about: nobody could see that.
FuzzVerdict fuzz_block_lists(const uint8_t* data, size_t size);

}  // namespace fovea::kernels
