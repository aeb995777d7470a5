// Runs dense attention over a small video's tokens with an installed Fovea.
#include <cstdio>

#include <ATen/ATen.h>

#include "core/attention/attention.h"
#include "core/check.h"

int main() {
  fovea::AttentionCall call;
  call.q_layout = fovea::TokenLayout::grid(/*frames=*/2, /*height=*/4, /*width=*/5);
  call.kv_layout = call.q_layout;
  call.q = at::randn({2, 3, call.q_layout.seq_len(), 12});
  call.k = at::randn_like(call.q);
  call.v = at::randn_like(call.q);

  fovea::Attention attention;
  try {
    const at::Tensor out = attention.run(call);
    if (!out.isfinite().all().item<bool>()) return 5;
    std::printf("output [%ld, %ld, %ld, %ld]", out.size(0), out.size(1), out.size(2), out.size(3));
  } catch (const fovea::Error& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return error.exit_code();
  }
  for (const auto& [what, count] : attention.counts()) {
    std::printf(", %s", what.c_str());
    if (count != 1) std::printf(" (%ld times)", count);
  }
  std::printf("\n");
}
