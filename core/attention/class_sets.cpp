#include "core/attention/class_sets.h"

#include <algorithm>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

template <typename... Parts>
void need(bool condition, const char* what, const Parts&... parts) {
  require(condition, ErrorCode::usage, what, parts...);
}

// Two selections over the same blocks, with summaries of common numbers.
struct Pair {
  at::Tensor a, b;
  Selection out;  // blocks and summaries; no classes yet
};

at::Tensor all_exact(const Selection& blocks, at::Device device) {
  const std::vector<int64_t> shape = {1, 1, blocks.q_blocks.num_blocks(),
                                      blocks.kv_blocks.num_blocks()};
  return at::full(shape, block_class::exact, at::device(device).dtype(at::kByte));
}

// Appends to `to` what it lacks of `from`; the classes of `from` in the new numbers.
at::Tensor with_summaries(const at::Tensor& classes, const std::vector<Summary>& from,
                          std::vector<Summary>& to) {
  std::vector<int64_t> renumbered = {block_class::skip, block_class::exact};
  for (const Summary& summary : from) {
    const auto place = std::find(to.begin(), to.end(), summary) - to.begin();
    if (place == static_cast<int64_t>(to.size())) to.push_back(summary);
    renumbered.push_back(block_class::first_summary + place);
  }
  const at::Tensor table = at::tensor(renumbered, at::kByte).to(classes.device());
  return table.index({classes.to(at::kLong)});
}

Pair paired(const char* what, const Selection& a, const Selection& b) {
  Pair out;
  const Selection& blocks = a.classes.defined() ? a : b;
  out.out.q_blocks = blocks.q_blocks;
  out.out.kv_blocks = blocks.kv_blocks;
  out.out.summaries = a.summaries;
  if (a.classes.defined() && b.classes.defined()) {
    need(same_blocks(a.q_blocks, b.q_blocks), what, "queries are in ", a.q_blocks.describe(),
         " and in ", b.q_blocks.describe());
    need(same_blocks(a.kv_blocks, b.kv_blocks), what, "keys are in ", a.kv_blocks.describe(),
         " and in ", b.kv_blocks.describe());
  }
  if (!blocks.classes.defined()) return out;
  const at::Device device = blocks.classes.device();
  out.a = a.classes.defined() ? a.classes : all_exact(blocks, device);
  out.b = b.classes.defined() ? b.classes : all_exact(blocks, device);
  if (!b.summaries.empty()) out.b = with_summaries(out.b, b.summaries, out.out.summaries);
  need(out.out.summaries.size() < 250, what, out.out.summaries.size(), " summaries");
  return out;
}

}  // namespace

at::Tensor unite(const at::Tensor& a, const at::Tensor& b) {
  // One less makes skip the highest of all bytes.
  return at::minimum(a - 1, b - 1) + 1;
}

at::Tensor intersect(const at::Tensor& a, const at::Tensor& b) { return at::minimum(a, b); }

at::Tensor without(const at::Tensor& a, const at::Tensor& b) { return a * complement(b); }

at::Tensor complement(const at::Tensor& a) { return a.eq(block_class::skip).to(at::kByte); }

bool same_blocks(const BlockAxis& a, const BlockAxis& b) {
  return a.host_offsets() == b.host_offsets() && a.max_size() == b.max_size() &&
         a.device_offsets().is_same(b.device_offsets());
}

Selection unite(const Selection& a, const Selection& b) {
  need(a.predicates == b.predicates, "unite", "the predicates of the selections differ");
  Pair pair = paired("unite", a, b);
  if (pair.a.defined()) pair.out.classes = unite(pair.a, pair.b);
  pair.out.predicates = a.predicates;
  return std::move(pair.out);
}

Selection intersect(const Selection& a, const Selection& b) {
  Pair pair = paired("intersect", a, b);
  if (pair.a.defined()) pair.out.classes = intersect(pair.a, pair.b);
  pair.out.predicates = a.predicates;
  for (const Predicate& predicate : b.predicates) {
    std::vector<Predicate>& all = pair.out.predicates;
    if (std::find(all.begin(), all.end(), predicate) == all.end()) all.push_back(predicate);
  }
  return std::move(pair.out);
}

Selection without(const Selection& a, const Selection& b) {
  need(b.predicates.empty(), "without", "blocks cannot express what predicates leave");
  Pair pair = paired("without", a, b);
  need(pair.a.defined(), "without", "neither selection has blocks");
  pair.out.classes = without(pair.a, pair.b);
  pair.out.predicates = a.predicates;
  return std::move(pair.out);
}

Selection complement(const Selection& a) {
  need(a.predicates.empty(), "complement", "blocks cannot express what predicates leave");
  need(a.classes.defined(), "complement", "the selection has no class map");
  Selection out = a;
  out.classes = complement(a.classes);
  out.summaries.clear();
  return out;
}

}  // namespace fovea
