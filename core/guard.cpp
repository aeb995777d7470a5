#include "core/guard.h"

#include <new>
#include <string_view>

#include <c10/util/Exception.h>

namespace fovea {
namespace {

bool contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// The first line, without LibTorch's file and line prefix and back trace.
std::string first_line(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

void rethrow_as_error(const std::string& where) {
  try {
    throw;
  } catch (const Error&) {
    throw;
  } catch (const c10::OutOfMemoryError& error) {
    throw Error(ErrorCode::resource, where, first_line(error.what_without_backtrace()));
  } catch (const c10::Error& error) {
    const std::string text = first_line(error.what_without_backtrace());
    // The CPU allocator has no exception type of its own.
    if (contains(text, "can't allocate memory") || contains(text, "out of memory")) {
      throw Error(ErrorCode::resource, where, text);
    }
    if (contains(text, "CUDA") || contains(text, "cuDNN") || contains(text, "CUBLAS")) {
      throw Error(ErrorCode::device, where, text);
    }
    throw Error(ErrorCode::internal, where, text);
  } catch (const std::bad_alloc&) {
    throw Error(ErrorCode::resource, where, "out of memory");
  } catch (const std::exception& error) {
    throw Error(ErrorCode::internal, where, error.what());
  }
}

}  // namespace fovea
