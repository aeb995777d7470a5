#include "tests/bench/sm90/list_shapes.h"

#include "kernels/attention/launch_sm90.cuh"

namespace fovea::kernels {
namespace {

using namespace sm90;

template <typename Base>
struct NoHold : Base {
  static constexpr bool kHold = false;
};
/// Tiles end before the next one begins.
template <typename Base>
struct NoFlow : Base {
  static constexpr bool kFlows = false;
};

template <typename Shape>
ListShape shape_of(const char* name) {
  const AttentionTile tile = {Shape::kQueries, Shape::kSpan, Shape::kPacked};
  return {name, tile, launch<Shape, Type::bf16>};
}

}  // namespace

const std::vector<ListShape>& list_shapes() {
  using Spans = ForwardShape<128, 2, 128, 2, 1, true>;
  using Packed128 = PackedShape<128, 128, 2>;
  static const std::vector<ListShape> shapes = {
      shape_of<NoFlow<Spans>>("spans, no flow"),
      shape_of<NoHold<Spans>>("spans, no hold"),
      shape_of<QueriesKept<Packed128>>("packed 128, q kept"),
      shape_of<NoHold<QueriesKept<Packed128>>>("packed 128, q kept, no hold"),
      shape_of<NoHold<PackedShape<128, 160, 2>>>("packed 160, no hold"),
      shape_of<NoFlow<PackedShape<128, 160, 2>>>("packed 160, no flow"),
      shape_of<PackedShape<128, 160, 2, 32>>("packed 160, exact boxes"),
  };
  return shapes;
}

}  // namespace fovea::kernels
