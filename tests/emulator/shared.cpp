#include "tests/emulator/shared.h"

#include <cstring>

#include "tests/emulator/simt.h"

namespace fovea::emulator {
namespace {

// Variables in shared memory lie within 2^30 bytes of this one, before or behind. Low bits of
// addresses are those of offsets.
alignas(1024) thread_local char g_dynamic[kSharedBytes];
constexpr uint32_t kBehind = 1u << 31;

}  // namespace

void fill_shared(size_t bytes) { std::memset(g_dynamic, 0xff, bytes); }

char* dynamic_memory() { return g_dynamic; }

uint32_t shared_address(const void* pointer) {
  const std::ptrdiff_t offset = static_cast<const char*>(pointer) - g_dynamic;
  return static_cast<uint32_t>(offset) & ~kBehind;
}

char* shared_pointer(uint32_t address) {
  return g_dynamic + (static_cast<int32_t>(address << 1) >> 1);
}

}  // namespace fovea::emulator
