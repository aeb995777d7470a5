#pragma once

#include <exception>
#include <string>
#include <utility>

#include "core/check.h"

namespace fovea {

/// Turns the exception in flight into an `Error`: LibTorch's out-of-memory and allocation failures
/// become resource, its GPU errors device, everything else internal. Call inside a catch block.
[[noreturn]] void rethrow_as_error(const std::string& where);

/// Runs `body`; whatever it throws leaves as `Error`. The public entry points of the library that
/// call LibTorch are wrapped in it.
template <typename Body>
auto guarded(const std::string& where, Body&& body) -> decltype(std::forward<Body>(body)()) {
  try {
    return std::forward<Body>(body)();
  } catch (...) {
    rethrow_as_error(where);
  }
}

}  // namespace fovea
