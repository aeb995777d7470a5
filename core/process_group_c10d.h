#pragma once

// What process_group.cpp needs of c10d. Not part of the interface of core.

#include <memory>

#include "core/process_group.h"

namespace fovea {

/// As `ProcessGroup::make`, for two processes or more.
std::unique_ptr<ProcessGroup> make_c10d_group(const ProcessPlace& place, at::Device device,
                                              const ProcessGroupOptions& options);

/// From now on `process_group_abandoned()` is true.
void mark_process_group_abandoned() noexcept;

}  // namespace fovea
