#include "tests/emulator/shared.h"

#include <array>
#include <cstring>

#include "tests/emulator/simt.h"

#define FOVEA_SHARED alignas(1024) thread_local char

namespace fovea::kernels {
FOVEA_SHARED memory[emulator::kSharedBytes];
}
namespace fovea::kernels::sm80 {
FOVEA_SHARED shared[emulator::kSharedBytes];
}
namespace fovea::kernels::sm90 {
FOVEA_SHARED shared[emulator::kSharedBytes];
}

namespace fovea::emulator {
namespace {

// Addresses of other variables in shared memory have this bit.
constexpr uint32_t kStatic = 1u << 31;
alignas(1024) thread_local char g_base;  // so that low bits of addresses are those of offsets
thread_local char* g_window = nullptr;   // dynamic memory that addresses are about

std::array<char*, 3> windows() {
  return {kernels::memory, kernels::sm80::shared, kernels::sm90::shared};
}

}  // namespace

void fill_shared(size_t bytes) {
  for (char* const window : windows()) std::memset(window, 0xff, bytes);
  g_window = nullptr;
}

uint32_t shared_address(const void* pointer) {
  const auto* const at = static_cast<const char*>(pointer);
  for (char* const window : windows()) {
    if (at < window || at >= window + kSharedBytes) continue;
    if (g_window != nullptr && g_window != window) fail("two dynamic shared memories in a kernel");
    g_window = window;
    return static_cast<uint32_t>(at - window);
  }
  return kStatic | (static_cast<uint32_t>(at - &g_base) & ~kStatic);
}

char* shared_pointer(uint32_t address) {
  if ((address & kStatic) == 0) return g_window + address;
  const uint32_t offset = address & ~kStatic;  // of 31 bits, with a sign
  return &g_base + (static_cast<int32_t>(offset << 1) >> 1);
}

}  // namespace fovea::emulator
