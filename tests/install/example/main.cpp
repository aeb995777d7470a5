// Attention with an installed Fovea: called by itself, and below code that knows nothing of it.
#include <cstdio>

#include <ATen/ATen.h>

#include "core/attention/functional.h"
#include "core/attention/scope.h"
#include "core/check.h"

namespace {

// Two layers of a network that was written for LibTorch.
at::Tensor network(at::Tensor x) {
  for (int layer = 0; layer < 2; ++layer) {
    x = x + at::scaled_dot_product_attention(x, x, x);
  }
  return x;
}

void print(const char* what, const at::Tensor& out) {
  std::printf("%s [%ld, %ld, %ld, %ld]\n", what, out.size(0), out.size(1), out.size(2),
              out.size(3));
}

void run() {
  const auto video = fovea::TokenLayout::grid(/*frames=*/4, /*height=*/16, /*width=*/16);
  const at::Tensor x = at::randn({2, 3, video.seq_len(), 32});
  const fovea::Json options = {{"tile", {2, 4, 4}}, {"window", {1, 3, 3}}};

  fovea::AttentionOptions window{.planner = "window", .planner_options = options};
  window.q_layout = window.kv_layout = video;
  const fovea::AttentionResult result = fovea::attention(x, x, x, window);
  print("attention", result.out);

  const at::Tensor dense = network(x);
  fovea::AttentionScope scope({"window", options, video});
  const at::Tensor planned = network(x);
  print("network", planned);
  for (const auto& [what, count] : scope.counts()) {
    std::printf("%s (%ld times)\n", what.c_str(), count);
  }
  std::printf("apart: %s\n", planned.equal(dense) ? "no" : "yes");
}

}  // namespace

int main() {
  try {
    run();
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code();
  }
}
