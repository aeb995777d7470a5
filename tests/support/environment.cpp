// Tells every test program where things are, unless the environment says otherwise. (CMake cannot
// hand more than one variable to tests that GoogleTest discovers.)

#include <cstdlib>

namespace {

const bool g_environment_is_set = [] {
  ::setenv("FOVEA_GOLDEN_DIR", FOVEA_TEST_GOLDEN_DIR, /*replace=*/0);
  ::setenv("FOVEA_SOURCE_DIR", FOVEA_TEST_SOURCE_DIR, 0);
  ::setenv("FOVEA_PROGRAM", FOVEA_TEST_PROGRAM, 0);
  ::setenv("FOVEA_PYTHON", FOVEA_TEST_PYTHON, 0);
  return true;
}();

}  // namespace
