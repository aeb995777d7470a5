#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <cuda_runtime.h>

// Runs CUDA kernels, compiled as C++, on the CPU: the threads of a block are fibers of one thread
// of the system, which change at barriers, at what a warp does together, and where they wait for
// copies or matrix products. Blocks run one after the other; from the first one on that waits for
// others as many run in turns as there are multiprocessors, each on a thread of the system, of
// which one goes on at a time.
//
// Copies and products that run on while their threads go on end at once, as late as is allowed, or
// at any time between; which one comes next is drawn. A kernel whose result depends on it has a
// race.

namespace fovea::emulator {

/// What the device would have hung, or gone wrong, at.
class Fault : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// When asynchronous work is done.
enum class Timing { early, late, any };

/// For the launches that follow.
void set_timing(Timing timing, uint32_t seed);

/// Multiprocessors of the device.
constexpr int kProcessors = 2;
void set_processors(int count);
int processors();

// ---- Of the running thread ----------------------------------------------------------------------

struct Place {
  dim3 thread, block, threads, blocks;
};
const Place& place();
/// Among the threads of the block.
int thread_index();

/// Goes on with other threads until `ready` says so; `what` is for the report of a hang.
void wait_until(const char* what, const std::function<bool()>& ready);

/// The same for what other blocks do.
void wait_for_blocks(const std::function<bool()>& ready);

/// Ends the launch.
[[noreturn]] void fail(const std::string& why);

/// A number below `below` that the seed decides.
uint32_t draw(uint32_t below);

/// Barrier `id` of so many threads.
void sync(int id, int threads, bool waits);
void sync_all();

/// What the lanes of a warp do together: each gives `in`, one computes, each gets its `out`. All
/// lanes of `mask` come here, with the same `what`.
void collect(uint32_t mask, const char* what, const void* in, void* out,
             const std::function<void(const void* const* in, void* const* out)>& compute);

// ---- Work that runs on --------------------------------------------------------------------------

/// A copy of the copy engine: done at once, or before the block's threads all wait.
void start_copy(std::function<void()> copy);

/// Work of this thread in groups, kept in order: done when `finish_groups` asks for it at the
/// latest.
enum class Stream { stores, copies };
void add_to_group(Stream stream, std::function<void()> work);
void end_group(Stream stream);
/// All but the last `but` groups are done.
void finish_groups(Stream stream, int but);

/// This thread's groups so far and, behind them, `work`, as a copy of the copy engine.
void start_behind(Stream stream, std::function<void()> work);

/// A matrix product of a warpgroup.
struct Product {
  enum class Type { bf16, f16, e4m3, s8 };
  Type type;
  int columns;           // N
  bool n_major = false;  // B
  bool m_major = false;  // A
  bool a_in_shared;
  uint32_t a_matrix, b_matrix;
  int keep;
  bool operator==(const Product&) const = default;
};
/// This thread's part: its registers of C, and of A where it is not in shared memory.
void start_product(const Product& product, void* c, const uint32_t* a);
void commit_products();
/// All but the last `but` groups of products are done.
void finish_products(int but);

// ---- Shared memory ------------------------------------------------------------------------------

/// That of launches, from a multiple of 1024 on.
char* dynamic_memory();

/// As instructions name it: 32 bits, and back.
uint32_t shared_address(const void* pointer);
char* shared_pointer(uint32_t address);

// ---- Launches -----------------------------------------------------------------------------------

/// The largest dynamic shared memory of a block.
constexpr size_t kSharedBytes = 227 * 1024;

/// Runs all blocks. Throws Fault.
void run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& body);

}  // namespace fovea::emulator
