#pragma once

#include <cstdint>
#include <functional>

namespace fovea {

/// Calls f(begin, end) for ranges that cover 0 to count, each of them at least `grain` long where
/// count is, with as many threads as LibTorch has (`set_num_threads`), and returns when all are
/// done. The ranges depend on count, grain and the number of threads alone. Within f it runs
/// serially.
///
/// `at::parallel_for` does nothing of this here: it is serial in code that is not compiled for
/// OpenMP, and a second OpenMP runtime beside LibTorch's own would fight it for the cores.
///
/// throws  what f throws first; then ranges may be left out
void parallel_for(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

}  // namespace fovea
