#include "tests/bench/sm90/list_shapes.h"

#include "kernels/attention/launch_sm90.cuh"

namespace fovea::kernels {
namespace {

using namespace sm90;

/// Tiles end before the next one begins.
template <typename Base>
struct NoFlow : Base {
  static constexpr bool kFlows = false;
};

template <typename Base>
struct NoPrefetch : Base {
  static constexpr bool kPrefetches = false;
};

/// Two blocks of 64 queries a multiprocessor, whose products and softmax are side by side.
template <int kStages_, int kValueStages_, int kSlots_>
struct Halves : ForwardShape<128, 1, 64, kStages_, 1> {
  static constexpr bool kSmall = false;
  static constexpr int kBlocks = 2, kThreads = 256;
  static constexpr int kLoadRegisters = 88, kComputeRegisters = 168;
  static constexpr int kValueStages = kValueStages_, kSlots = kSlots_;
  static constexpr bool kFlows = kSlots_ > 1;
};
template <typename Base>
struct Hold : Base {
  static constexpr bool kHold = true;
};

template <typename Shape>
ListShape shape_of(const char* name) {
  const AttentionTile tile = {Shape::kQueries, Shape::kSpan, Shape::kPacked};
  return {name, tile, launch<Shape, Type::bf16>};
}

}  // namespace

const std::vector<ListShape>& list_shapes() {
  using Spans = ForwardShape<128, 2, 128, 2, 1>;
  using Packed128 = PackedShape<128, 128, 2>;
  using Packed160 = PackedShape<128, 160, 2>;
  static const std::vector<ListShape> shapes = {
      shape_of<Hold<Spans>>("spans, hold"),
      shape_of<NoPrefetch<Spans>>("spans, no prefetch"),
      shape_of<NoFlow<Spans>>("spans, no flow"),
      shape_of<NoFlow<Packed128>>("packed 128, no flow"),
      shape_of<NoPrefetch<Packed160>>("packed 160, no prefetch"),
      shape_of<PackedShape<128, 128, 2, 32>>("packed 128, exact boxes"),
      shape_of<PackedShape<128, 160, 2, 32>>("packed 160, exact boxes"),
      shape_of<NoPrefetch<ForwardShape<128, 1, 64, 2, 1>>>("three blocks, no prefetch"),
      shape_of<Halves<3, 2, 2>>("halves, flow"),
      shape_of<Hold<Halves<3, 2, 2>>>("halves, flow, hold"),
      shape_of<NoFlow<Halves<3, 2, 2>>>("halves"),
      shape_of<Halves<3, 3, 1>>("halves, 3 stages of values"),
  };
  return shapes;
}

}  // namespace fovea::kernels
