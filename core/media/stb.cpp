#include "core/media/stb.h"

#include <cstdlib>
#include <memory>

#include "core/check.h"

namespace {

thread_local size_t g_max_allocation = 0;
thread_local bool g_limit_hit = false;

bool too_large(size_t size) {
  if (size > g_max_allocation) g_limit_hit = true;
  return size > g_max_allocation;
}

void* limited_malloc(size_t size) { return too_large(size) ? nullptr : std::malloc(size); }
void* limited_realloc(void* old, size_t size) {
  return too_large(size) ? nullptr : std::realloc(old, size);
}

}  // namespace

#define STBI_MALLOC(size) limited_malloc(size)
#define STBI_REALLOC(old, size) limited_realloc(old, size)
#define STBI_FREE(pointer) std::free(pointer)
#define STBI_MAX_DIMENSIONS 16384
#define STBI_ONLY_PNG
#define STBI_ONLY_JPEG
#define STBI_ONLY_BMP
#define STBI_NO_STDIO
#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

#define STBI_WRITE_NO_STDIO
#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

namespace fovea::stb {
namespace {

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};

void begin_limited(uint64_t max_allocation) {
  g_max_allocation = max_allocation;
  g_limit_hit = false;
}

}  // namespace

std::vector<uint8_t> decode_rgb(std::string_view bytes, const std::string& where, int width,
                                int height, uint64_t max_allocation) {
  begin_limited(max_allocation);
  int got_width = 0, got_height = 0, channels = 0;
  const std::unique_ptr<stbi_uc, Free> pixels(
      stbi_load_from_memory(reinterpret_cast<const stbi_uc*>(bytes.data()),
                            static_cast<int>(bytes.size()), &got_width, &got_height, &channels, 3));
  if (!pixels) {
    require(!g_limit_hit, ErrorCode::bad_data, where, "unpacks to more data than its header says");
    throw Error(ErrorCode::bad_data, where, str("damaged picture: ", stbi_failure_reason()));
  }
  require(got_width == width && got_height == height, ErrorCode::bad_data, where,
          "damaged picture: header says ", width, "x", height, ", decoded ", got_width, "x",
          got_height);
  return {pixels.get(), pixels.get() + static_cast<size_t>(width) * height * 3};
}

std::string inflate(std::string_view bytes, const std::string& where, uint64_t max_bytes) {
  begin_limited(2 * max_bytes);
  int length = 0;
  const std::unique_ptr<char, Free> text(
      stbi_zlib_decode_malloc(bytes.data(), static_cast<int>(bytes.size()), &length));
  require(!g_limit_hit && static_cast<uint64_t>(length) <= max_bytes, ErrorCode::resource, where,
          "compressed text unpacks to more than ", max_bytes, " bytes");
  require(text != nullptr, ErrorCode::bad_data, where,
          "damaged compressed text: ", stbi_failure_reason());
  return {text.get(), static_cast<size_t>(length)};
}

std::string encode_png(const uint8_t* rgb, int width, int height) {
  int length = 0;
  const std::unique_ptr<unsigned char, Free> bytes(
      stbi_write_png_to_mem(rgb, width * 3, width, height, 3, &length));
  require(bytes != nullptr, ErrorCode::resource, "PNG", "no memory for ", width, "x", height);
  return {reinterpret_cast<const char*>(bytes.get()), static_cast<size_t>(length)};
}

}  // namespace fovea::stb
