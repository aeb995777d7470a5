#pragma once

namespace fovea {

/// Version of the library and program; CMakeLists.txt reads it from here.
inline constexpr const char* kVersion = "0.1.0";

}  // namespace fovea
