#include "tests/emulator/simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <condition_variable>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <random>
#include <sstream>
#include <thread>
#include <utility>

#include "tests/emulator/products.h"
#include "tests/emulator/shared.h"

namespace fovea::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;
constexpr int kWarp = 32, kWarpgroup = 128;

uint32_t seed_of_environment() {
  const char* const seed = std::getenv("FOVEA_EMULATOR_SEED");
  return seed == nullptr ? 1 : static_cast<uint32_t>(std::strtoul(seed, nullptr, 10));
}

struct Settings {
  Timing timing = Timing::any;
  std::minstd_rand random{seed_of_environment() + 1};
  int processors = kProcessors;
};
Settings g_settings;

// Stacks are kept from block to block; behind their end is memory that nobody may touch.
class Stack {
 public:
  Stack()
      : begin_(static_cast<char*>(mmap(nullptr, kStackBytes + kGuard, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0))) {
    mprotect(begin_, kGuard, PROT_NONE);
  }
  ~Stack() { munmap(begin_, kStackBytes + kGuard); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* begin() const { return begin_ + kGuard; }

 private:
  static constexpr size_t kGuard = 4096;
  char* begin_;
};

using Work = std::function<void()>;

// Work of a thread, in groups.
struct Groups {
  std::vector<Work> open;
  std::deque<std::vector<Work>> closed;
  void finish(size_t but) {
    for (; closed.size() > but; closed.pop_front()) {
      for (const Work& work : closed.front()) work();
    }
  }
};

struct Fiber {
  ucontext_t context;  // where it begins
  jmp_buf jump;        // where it goes on; swapcontext would ask the system for every change
  bool is_started = false;
  Place place;
  int index = 0;
  bool is_done = false;
  const char* waits_for = nullptr;
  const std::function<bool()>* ready = nullptr;
  bool waits_for_blocks = false;
  std::array<Groups, 2> groups;
  // Of products: how many were started, and how many of them each group ends with.
  size_t products = 0;
  std::deque<size_t> product_groups;
};

struct Barrier {
  int arrived = 0, threads = 0;
  uint64_t generation = 0;
};

// What lanes of a warp do together; groups of lanes may do so side by side.
struct Together {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  uint64_t generation = 0;
  std::array<const void*, kWarp> in;
  std::array<void*, kWarp> out;
};
using Warp = std::deque<Together>;  // one for each mask

// The products that a warpgroup started, from number `done` on.
struct Warpgroup {
  std::deque<ProductWork> started;
  size_t done = 0;
};

struct Block {
  std::vector<Fiber> fibers;
  std::array<Barrier, 16> barriers;
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
  std::vector<Work> copies;
  std::string fault;
  jmp_buf scheduler;
  Fiber* running = nullptr;
  const std::function<void()>* body = nullptr;
};
thread_local Block* g_block = nullptr;
thread_local std::vector<std::unique_ptr<Stack>> g_stacks;

// Threads of the system that run the blocks of a launch, one at a time. A block that waits for
// others lets another thread go on.
struct Launch {
  dim3 blocks, threads;
  size_t shared_bytes = 0;
  const std::function<void()>* body = nullptr;
  uint64_t next = 0;  // block to start
  std::vector<std::thread> others;
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<bool> is_done = {false};  // of each thread, the launching one first
  size_t turn = 0;
  uint64_t idle = 0;  // turns since a block did anything
  std::string fault;
};
Launch* g_launch = nullptr;
thread_local size_t g_worker = 0;

uint64_t count_of(dim3 x) { return uint64_t{x.x} * x.y * x.z; }
void run_blocks();

Block& block() {
  if (g_block == nullptr) throw std::logic_error("device code outside of a kernel");
  return *g_block;
}
Fiber& fiber() { return *block().running; }

[[gnu::noinline]] void switch_away() {
  if (_setjmp(fiber().jump) == 0) _longjmp(block().scheduler, 1);
}
[[gnu::noinline]] void switch_to(Fiber& next) {
  block().running = &next;
  if (_setjmp(block().scheduler) != 0) return;
  if (next.is_started) _longjmp(next.jump, 1);
  next.is_started = true;
  setcontext(&next.context);
}

void fiber_main() {
  (*block().body)();
  fiber().is_done = true;
  switch_away();
}

bool is_early() {
  return g_settings.timing == Timing::early || (g_settings.timing == Timing::any && draw(2) == 0);
}

void finish_copy(size_t at) {
  const Work work = std::move(block().copies[at]);
  block().copies.erase(block().copies.begin() + static_cast<std::ptrdiff_t>(at));
  work();
}

// Where threads wait, those of each place together.
std::string hang_report() {
  std::map<std::string, std::vector<int>> places;
  for (const Fiber& one : block().fibers) {
    if (!one.is_done) places[one.waits_for].push_back(one.index);
  }
  std::ostringstream out;
  out << "all threads wait:";
  for (const auto& [what, threads] : places) {
    out << ' ' << threads.size() << " for " << what << " (first thread " << threads.front() << ");";
  }
  return out.str();
}

// Lets every thread that can go on do so, in an order that is drawn. Returns whether any did.
bool run_round() {
  Block& own = block();
  const auto count = static_cast<uint32_t>(own.fibers.size());
  // Whole warps in turn, so that what they do together does not take a round a lane.
  const uint32_t first = draw(count);
  bool any = false;
  for (uint32_t i = 0; i < count && own.fault.empty(); ++i) {
    Fiber& next = own.fibers[(first + i) % count];
    if (next.is_done || (next.ready != nullptr && !(*next.ready)())) continue;
    any = true;
    switch_to(next);
  }
  return any;
}

void wait_for_turn() {
  Launch& launch = *g_launch;
  std::unique_lock lock(launch.mutex);
  launch.changed.wait(lock, [&] { return launch.turn == g_worker; });
}

// Another thread goes on, a new one while there are multiprocessors.
void give_turn() {
  Launch& launch = *g_launch;
  const size_t count = launch.is_done.size();
  const bool has_more = launch.next < count_of(launch.blocks) && launch.fault.empty();
  const std::lock_guard lock(launch.mutex);
  if (has_more && count < static_cast<size_t>(g_settings.processors)) {
    launch.is_done.push_back(false);
    launch.turn = count;
    launch.others.emplace_back([count] {
      g_worker = count;
      wait_for_turn();
      run_blocks();
    });
  } else {
    launch.turn = draw(static_cast<uint32_t>(count));
    for (size_t i = 0; i < count && launch.is_done[launch.turn]; ++i) {
      launch.turn = (launch.turn + 1) % count;
    }
  }
  launch.changed.notify_all();
}

// A block that waits for others lets them go on; `moved` since it was its turn. Returns whether
// they ever will.
bool let_others_run(bool moved) {
  Launch& launch = *g_launch;
  constexpr uint64_t kHang = 1000;  // turns are drawn
  launch.idle = moved ? 0 : launch.idle + 1;
  if (launch.idle > kHang) return false;
  give_turn();
  wait_for_turn();
  return true;
}

void make_fibers(Block& own, dim3 index, dim3 blocks, dim3 threads) {
  const size_t count = size_t{threads.x} * threads.y * threads.z;
  own.fibers.resize(count), own.warps.resize((count + kWarp - 1) / kWarp);
  own.warpgroups.resize((count + kWarpgroup - 1) / kWarpgroup);
  while (g_stacks.size() < count) g_stacks.push_back(std::make_unique<Stack>());
  for (size_t i = 0; i < count; ++i) {
    Fiber& one = own.fibers[i];
    const auto at = static_cast<unsigned>(i);
    one.index = static_cast<int>(i);
    one.place = {dim3(at % threads.x, at / threads.x % threads.y, at / threads.x / threads.y),
                 index, threads, blocks};
    getcontext(&one.context);
    one.context.uc_stack.ss_sp = g_stacks[i]->begin();
    one.context.uc_stack.ss_size = kStackBytes;
    one.context.uc_link = nullptr;
    makecontext(&one.context, fiber_main, 0);
  }
}

void run_block(dim3 index, dim3 blocks, dim3 threads, const std::function<void()>& body) {
  Block own;
  g_block = &own;
  own.body = &body;
  make_fibers(own, index, blocks, threads);
  bool moved = false;  // since other blocks ran
  while (own.fault.empty() && g_launch->fault.empty()) {
    const bool any = run_round();
    moved = moved || any;
    if (!own.fault.empty() || std::all_of(own.fibers.begin(), own.fibers.end(),
                                          [](const Fiber& one) { return one.is_done; })) {
      break;
    }
    if (!own.copies.empty() && (!any || (g_settings.timing != Timing::late && draw(4) == 0))) {
      finish_copy(draw(static_cast<uint32_t>(own.copies.size())));
      continue;
    }
    const bool waits = std::any_of(own.fibers.begin(), own.fibers.end(),
                                   [](const Fiber& one) { return one.waits_for_blocks; });
    if (any && !(waits && draw(8) == 0)) continue;
    if (!waits || !let_others_run(moved)) own.fault = hang_report();
    moved = false;
  }
  if (!g_launch->fault.empty()) {  // of another block
    g_block = nullptr;
    return;
  }
  for (const Fiber& one : own.fibers) {
    if (own.fault.empty() && !one.groups[0].closed.empty()) {
      own.fault = "thread " + std::to_string(one.index) + " ends before its stores have been read";
    }
  }
  if (own.fault.empty() && !own.copies.empty()) own.fault = "the block ends before its copies";
  g_block = nullptr;
  if (own.fault.empty()) return;
  std::ostringstream out;
  out << "block " << index.x << ", " << index.y << ", " << index.z << ": " << own.fault;
  g_launch->fault = out.str();
}

// Blocks one after the other, then other threads go on.
void run_blocks() {
  Launch& launch = *g_launch;
  while (launch.next < count_of(launch.blocks) && launch.fault.empty()) {
    const uint64_t at = launch.next++;
    fill_shared(launch.shared_bytes);
    const auto x = static_cast<unsigned>(at % launch.blocks.x);
    const auto y = static_cast<unsigned>(at / launch.blocks.x % launch.blocks.y);
    const auto z = static_cast<unsigned>(at / launch.blocks.x / launch.blocks.y);
    run_block(dim3(x, y, z), launch.blocks, launch.threads, *launch.body);
    launch.idle = 0;
  }
  launch.is_done[g_worker] = true;
  give_turn();
}

}  // namespace

void set_timing(Timing timing, uint32_t seed) {
  g_settings.timing = timing;
  g_settings.random.seed(seed + 1);
}

void set_processors(int count) { g_settings.processors = count; }
int processors() { return g_settings.processors; }

const Place& place() { return fiber().place; }
int thread_index() { return fiber().index; }

void wait_until(const char* what, const std::function<bool()>& ready) {
  if (ready()) return;
  Fiber& own = fiber();
  own.waits_for = what, own.ready = &ready;
  switch_away();
  own.waits_for = nullptr, own.ready = nullptr;
}

void wait_for_blocks(const std::function<bool()>& ready) {
  fiber().waits_for_blocks = true;
  wait_until("other blocks", ready);
  fiber().waits_for_blocks = false;
}

void fail(const std::string& why) {
  block().fault = "thread " + std::to_string(fiber().index) + ": " + why;
  while (true) switch_away();
}

uint32_t draw(uint32_t below) { return static_cast<uint32_t>(g_settings.random() >> 3) % below; }

void sync(int id, int threads, bool waits) {
  Barrier& barrier = block().barriers.at(static_cast<size_t>(id));
  if (barrier.arrived > 0 && barrier.threads != threads) {
    fail("barrier " + std::to_string(id) + " of " + std::to_string(barrier.threads) +
         " threads is taken for one of " + std::to_string(threads));
  }
  barrier.threads = threads;
  const uint64_t generation = barrier.generation;
  if (++barrier.arrived == threads) barrier.arrived = 0, ++barrier.generation;
  if (waits) {
    wait_until("a barrier of threads", [&] { return barrier.generation != generation; });
  }
}

void sync_all() { sync(0, static_cast<int>(block().fibers.size()), true); }

void collect(uint32_t mask, const char* what, const void* in, void* out,
             const std::function<void(const void* const* in, void* const* out)>& compute) {
  const auto lane = static_cast<size_t>(fiber().index % kWarp);
  Warp& warp = block().warps[static_cast<size_t>(fiber().index / kWarp)];
  const uint32_t bit = 1u << lane;
  if ((mask & bit) == 0) fail(std::string(what) + " without this lane");
  Together* own = nullptr;
  for (Together& one : warp) {
    if (one.mask == mask) own = &one;
    const bool is_other = one.mask != mask || std::strcmp(one.what, what) != 0;
    if (one.arrived != 0 && (one.mask & mask) != 0 && is_other) {
      fail(std::string("a warp is at ") + one.what + " and at " + what);
    }
  }
  if (own == nullptr) own = &warp.emplace_back(Together{mask});
  own->what = what, own->arrived |= bit;
  own->in[lane] = in, own->out[lane] = out;
  if (own->arrived == mask) {
    compute(own->in.data(), own->out.data());
    own->arrived = 0, ++own->generation;
    return;
  }
  const uint64_t generation = own->generation;
  wait_until(what, [&] { return own->generation != generation; });
}

void start_copy(Work copy) {
  if (is_early()) return copy();
  block().copies.push_back(std::move(copy));
}

void add_to_group(Stream stream, Work work) {
  fiber().groups[static_cast<size_t>(stream)].open.push_back(std::move(work));
}

void end_group(Stream stream) {
  Groups& groups = fiber().groups[static_cast<size_t>(stream)];
  groups.closed.push_back(std::move(groups.open));
  groups.open.clear();
  if (is_early()) groups.finish(0);
}

void finish_groups(Stream stream, int but) {
  fiber().groups[static_cast<size_t>(stream)].finish(static_cast<size_t>(but));
}

void start_behind(Stream stream, Work work) {
  Groups groups = std::exchange(fiber().groups[static_cast<size_t>(stream)], {});
  groups.closed.push_back(std::move(groups.open));
  groups.closed.push_back({std::move(work)});
  start_copy([groups]() mutable { groups.finish(0); });
}

namespace {

// Does products of a warpgroup up to number `end`, as far as all its threads have started them.
void do_products(Warpgroup& group, size_t end) {
  while (group.done < end && !group.started.empty() &&
         group.started.front().threads == kWarpgroup) {
    group.started.front().run();
    group.started.pop_front();
    ++group.done;
  }
}

}  // namespace

void start_product(const Product& product, void* c, const uint32_t* a) {
  Fiber& own = fiber();
  Warpgroup& group = block().warpgroups[static_cast<size_t>(own.index / kWarpgroup)];
  const size_t at = own.products++ - group.done;
  if (at == group.started.size()) group.started.push_back(ProductWork(product));
  ProductWork& work = group.started[at];
  if (!(work.product == product)) fail("threads of a warpgroup ask for different products");
  work.add(own.index % kWarpgroup, c, a);
  if (work.threads == kWarpgroup && is_early()) do_products(group, group.done + at + 1);
}

void commit_products() { fiber().product_groups.push_back(fiber().products); }

void finish_products(int but) {
  Fiber& own = fiber();
  Warpgroup& group = block().warpgroups[static_cast<size_t>(own.index / kWarpgroup)];
  size_t end = 0;
  while (own.product_groups.size() > static_cast<size_t>(but)) {
    end = own.product_groups.front();
    own.product_groups.pop_front();
  }
  wait_until("products of the warpgroup", [&] {
    do_products(group, end);
    return group.done >= end;
  });
}

void run(dim3 blocks, dim3 threads, size_t shared_bytes, const std::function<void()>& body) {
  Launch launch{blocks, threads, shared_bytes, &body};
  g_launch = &launch;
  run_blocks();
  for (size_t i = 0; i < launch.others.size(); ++i) launch.others[i].join();
  g_launch = nullptr;
  if (!launch.fault.empty()) throw Fault(launch.fault);
}

}  // namespace fovea::emulator
