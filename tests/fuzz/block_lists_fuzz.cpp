// An entry for libFuzzer; tests/README.md says how it is built and run.

#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/block_lists.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using fovea::kernels::FuzzVerdict;
  const FuzzVerdict verdict = fovea::kernels::fuzz_block_lists(data, size);
  if (verdict.outcome == FuzzVerdict::Outcome::wrong) {
    std::fprintf(stderr, "%s\n", verdict.text.c_str());
    std::abort();
  }
  return 0;
}
