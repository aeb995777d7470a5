#include "tests/conformance/problems.h"

#include <algorithm>
#include <limits>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include "core/check.h"

namespace fovea::test {
namespace {

constexpr int64_t kMaxPairs = 200'000;  // of logits

const std::vector<int64_t> kLengths = {1,  2,  3,   15,  16,  17,  31, 63,
                                       64, 65, 127, 128, 129, 255, 257};
const std::vector<int64_t> kLong = {1000, 1023, 1024, 1025};
const std::vector<std::array<int64_t, 2>> kPairs = {{1, 239}, {239, 1}, {3, 799}, {113, 203}};
const std::vector<std::array<int64_t, 3>> kGrids = {{1, 1, 1}, {1, 7, 13}, {5, 1, 64}, {2, 5, 7},
                                                    {3, 4, 9}, {2, 9, 11}, {4, 3, 5},  {1, 16, 16}};
const std::vector<int64_t> kDims = {8, 16, 21, 32, 40, 64, 72, 80, 96, 111, 128, 160, 192, 256};
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Makes one problem; every member draws from the same counter.
class Maker {
 public:
  Maker(uint64_t seed, at::ScalarType dtype, at::Device device)
      : random_(seed), dtype_(dtype), device_(device) {}

  Problem make(int64_t number) {
    Problem out;
    out.number = number;
    batch_ = random_.one_in(3) ? 2 : 1;
    make_layouts();
    make_heads();
    out.call = make_call();
    out.plan = AttentionPlan::dense("conformance");
    out.kind = make_plan(out.plan, out.call);
    return out;
  }

  Problem retrieval(int64_t number) {
    Problem out;
    out.number = number;
    out.kind = "retrieval";
    batch_ = 1 + number % 2;
    make_layouts();
    make_heads();
    AttentionCall& call = out.call;
    call.q_layout = q_layout_;
    call.kv_layout = kv_layout_;
    const auto zeros = [&](int64_t heads, int64_t length) {
      return at::zeros({batch_, heads, length, dim_}, at::device(device_).dtype(dtype_));
    };
    call.q = zeros(heads_, q_len());
    call.k = zeros(kv_heads_, kv_len());
    call.v = random_.normal({batch_, kv_heads_, kv_len(), value_dim_}).to(device_, dtype_);
    call.needs_lse = random_.one_in(2);
    out.plan = AttentionPlan::dense("conformance");
    const int64_t kind = random_.below(4);
    if (kind == 1) set_predicates(out.plan);
    if (kind > 1) set_blocks(out.plan, 2);
    return out;
  }

  Problem gain(int64_t number) {
    Problem out;
    out.number = number;
    out.kind = "gain";
    heads_ = kv_heads_ = 4;
    dim_ = value_dim_ = 64;
    q_layout_ = kv_layout_ = TokenLayout::sequence(257 + number);
    out.call = make_call();
    out.call.q = random_.normal(out.call.q.sizes()).mul(3).to(device_, dtype_);
    out.call.k = random_.normal(out.call.k.sizes()).to(device_, dtype_);
    out.call.v = random_.normal(out.call.v.sizes()).to(device_, dtype_);
    out.call.bias = at::Tensor();
    out.call.sm_scale.reset();
    out.plan = AttentionPlan::dense("conformance");
    if (number % 2 == 0) set_blocks(out.plan, 2);
    return out;
  }

 private:
  int64_t q_len() const { return q_layout_.seq_len(); }
  int64_t kv_len() const { return kv_layout_.seq_len(); }
  Selection& selection_of(AttentionPlan& plan, size_t branch = 0) {
    return std::get<SoftmaxBranch>(plan.branches[branch].kind).selection;
  }
  int64_t items() { return random_.one_in(2) ? 1 : batch_; }
  int64_t heads() { return random_.one_in(2) ? 1 : heads_; }

  at::Tensor valid_len(int64_t capacity) {
    std::vector<int64_t> lengths;
    for (int64_t i = 0; i < batch_; ++i) lengths.push_back(random_.below(capacity + 1));
    return at::tensor(lengths, at::kLong).to(device_);
  }

  TokenLayout grid_layout() {
    const auto& [frames, height, width] = random_.of(kGrids);
    const TokenLayout grid = TokenLayout::grid(frames, height, width);
    const int64_t text = random_.of(std::vector<int64_t>{1, 5, 23, 64});
    switch (random_.below(5)) {
      case 0:
        return TokenLayout(grid).append(TokenLayout::text(text, valid_len(text)));
      case 1:
        return TokenLayout::text(text, valid_len(text)).append(grid);
      case 2:
        return TokenLayout::extra(2).append(grid).append(TokenLayout::text(text));
      default:
        return grid;
    }
  }
  TokenLayout sequence(int64_t length) {
    return TokenLayout::sequence(length, random_.one_in(3) ? valid_len(length) : at::Tensor());
  }
  void make_layouts() {
    switch (random_.below(4)) {
      case 0: {  // queries and keys of their own
        const std::array<int64_t, 2> own = {random_.of(kLengths), random_.of(kLengths)};
        const auto& [q, kv] = random_.one_in(4) ? random_.of(kPairs) : own;
        q_layout_ = TokenLayout::sequence(q);
        kv_layout_ = sequence(kv);
        return;
      }
      case 1:
        q_layout_ = kv_layout_ =
            sequence(random_.one_in(12) ? random_.of(kLong) : random_.of(kLengths));
        return;
      default:
        q_layout_ = kv_layout_ = grid_layout();
        has_grid_ = true;
    }
  }

  void make_heads() {
    kv_heads_ = random_.of(std::vector<int64_t>{1, 2, 3});
    const int64_t ratio = random_.of(std::vector<int64_t>{1, 1, 3, 8});
    heads_ = kv_heads_ * ratio;
    if (!has_padding() && random_.one_in(40)) batch_ = 60;
    const auto is_large = [&] { return batch_ * heads_ * q_len() * kv_len() > kMaxPairs; };
    if (is_large()) heads_ = kv_heads_;
    if (is_large()) heads_ = kv_heads_ = 1;
    if (is_large() && !has_padding()) batch_ = 1;
    dim_ = random_.of(kDims);
    if (q_len() * kv_len() > kMaxPairs) dim_ = random_.of(std::vector<int64_t>{8, 21, 64});
    value_dim_ = random_.one_in(5) ? random_.of(kDims) : dim_;
  }
  bool has_padding() const {
    const auto& lengths = kv_layout_.valid_len();
    return std::any_of(lengths.begin(), lengths.end(),
                       [](const at::Tensor& x) { return x.defined(); });
  }

  // One of the contract's laws of data, of fp32 [batch, heads, length, dim].
  at::Tensor data(int64_t batch, int64_t heads, int64_t length, int64_t dim) {
    const at::Tensor x = random_.normal({batch, heads, length, dim});
    switch (law_) {
      case 1:
        return x * 3;
      case 2:
        return x + 8 * random_.normal({1, 1, 1, dim});
      case 3: {
        x.select(3, random_.below(dim)).mul_(20);
        return x;
      }
      case 4:
        return x.slice(2, 0, 1).expand_as(x).clone();
      case 5:
        return at::zeros_like(x);
      case 6:
        return x.sign();
      default:
        return x;
    }
  }

  // With the strides that callers have; NaN where a side has padding.
  at::Tensor tensor(int64_t heads, const TokenLayout& layout, int64_t dim, bool poison) {
    const bool shared_heads = random_.one_in(12), shared_items = random_.one_in(12);
    const at::Tensor valid = layout.valid_mask();
    const bool padded = valid.defined();
    at::Tensor x =
        data(shared_items && !padded ? 1 : batch_, shared_heads ? 1 : heads, layout.seq_len(), dim)
            .to(device_, dtype_);
    // Not all of an item: rows that see nothing are 0, whatever they are.
    if (padded && poison) {
      const at::Tensor some = valid.any(3, /*keepdim=*/true);
      x = x.masked_fill(valid.logical_not().logical_and(some).transpose(2, 3), kNaN);
    }
    switch (random_.below(6)) {
      case 0:
      case 1:  // tokens before heads, as projections give it
        x = x.transpose(1, 2).contiguous().transpose(1, 2);
        break;
      case 2: {  // begins at an odd element, rows with room between them
        const std::vector<int64_t> sizes = {x.size(0), x.size(1), x.size(2), dim + 3};
        const at::Tensor room = at::full(sizes, kNaN, x.options());
        room.slice(3, 1, dim + 1).copy_(x);
        x = room.slice(3, 1, dim + 1);
        break;
      }
      case 3:  // tokens beside each other
        x = x.transpose(2, 3).contiguous().transpose(2, 3);
        break;
      default:
        break;
    }
    return x.expand({batch_, heads, layout.seq_len(), dim});
  }

  AttentionCall make_call() {
    AttentionCall call;
    call.q_layout = q_layout_;
    call.kv_layout = kv_layout_;
    law_ = random_.one_in(2) ? 0 : random_.below(7);
    const bool poisons_queries = random_.one_in(3);
    call.q = tensor(heads_, q_layout_, dim_, poisons_queries);
    call.k = tensor(kv_heads_, kv_layout_, dim_, /*poison=*/true);
    const int64_t law = law_;
    if (law == 2 || law == 3) law_ = 0;  // of keys only
    call.v = tensor(kv_heads_, kv_layout_, value_dim_, /*poison=*/true);
    law_ = law;
    if (random_.one_in(4)) call.sm_scale = 0.3 * static_cast<double>(random_.below(5)) / 4;
    if (random_.one_in(5)) call.bias = make_bias(/*may_hide=*/!poisons_queries);
    call.needs_lse = random_.one_in(2);
    call.layer = random_.below(5);
    return call;
  }
  // What fp16 and bf16 can hold, so that no executor has to round it.
  at::Tensor make_bias(bool may_hide) {
    const int64_t b = items(), h = heads(), q = random_.one_in(3) ? 1 : q_len(),
                  k = random_.one_in(4) ? 1 : kv_len();
    at::Tensor bias = random_.normal({b, h, q, k}).mul(4).round().div(2);
    if (may_hide && random_.one_in(3) && k > 1) {
      bias = bias.masked_fill(random_.uniform({b, h, q, k}).lt(0.2), -kInfinity);
    }
    return bias.to(device_, random_.one_in(2) ? dtype_ : at::kFloat);
  }

  TokenOrder order(int64_t own_heads, const TokenLayout& layout) {
    switch (random_.below(has_grid_ ? 6 : 3)) {
      case 0: {
        const int64_t b = items(), h = random_.one_in(2) ? 1 : own_heads;
        return TokenOrder::index(random_.permutation(b, h, layout.seq_len()).to(device_));
      }
      case 3:
        return TokenOrder::tiles({1, 4, 4});
      case 4: {
        const std::vector<std::array<int64_t, 3>> all = {{2, 0, 1}, {0, 1, 2}, {1, 2, 0}};
        std::vector<std::array<int64_t, 3>> axes;
        for (int64_t i = 0; i < own_heads; ++i) axes.push_back(random_.of(all));
        return TokenOrder::axes(axes);
      }
      default:
        return {};
    }
  }
  BlockAxis axis(int64_t own_heads, const TokenLayout& layout, const TokenOrder& order) {
    const std::vector<int64_t> sizes = {5, 8, 16, 20, 32, 48, 64, 128};
    if (order.kind() == TokenOrder::Kind::tiles) return BlockAxis::tiles(layout, order.tile());
    if (!random_.one_in(3)) return BlockAxis::uniform(layout, random_.of(sizes));
    // Of any size, also none.
    const int64_t length = layout.seq_len(), blocks = 1 + random_.below(6);
    const int64_t b = items(), h = random_.one_in(2) ? 1 : own_heads;
    at::Tensor inner = (random_.uniform({b, h, blocks - 1}) * static_cast<double>(length + 1))
                           .floor()
                           .clamp_max(static_cast<double>(length));
    inner = std::get<0>(inner.sort(2));
    const at::Tensor ends = at::cat(
        {at::zeros({b, h, 1}), inner, at::full({b, h, 1}, static_cast<double>(length), at::kFloat)},
        2);
    return BlockAxis::from_offsets(ends.to(device_, random_.one_in(2) ? at::kInt : at::kLong),
                                   length);
  }
  at::Tensor classes(const BlockAxis& q, const BlockAxis& kv, int64_t count) {
    const std::vector<int64_t> sizes = {items(), heads(), q.num_blocks(), kv.num_blocks()};
    at::Tensor out = (random_.uniform(sizes) * static_cast<double>(count - 1)).floor() + 1;
    const std::vector<double> densities = {0.1, 0.3, 0.7, 1.0};
    out = out.masked_fill(random_.uniform(sizes).ge(random_.of(densities)), 0);
    return out.to(device_, at::kByte);
  }
  void set_blocks(AttentionPlan& plan, int64_t count, size_t branch = 0) {
    Selection& selection = selection_of(plan, branch);
    selection.q_blocks = axis(heads_, q_layout_, plan.q_order);
    // Blocks of keys are those of heads only where their order is shared.
    selection.kv_blocks = axis(kv_heads_, kv_layout_, plan.kv_order);
    selection.classes = classes(selection.q_blocks, selection.kv_blocks, count);
  }
  void set_orders(AttentionPlan& plan) {
    plan.q_order = order(heads_, q_layout_);
    plan.kv_order = order(kv_heads_, kv_layout_);
  }
  void set_predicates(AttentionPlan& plan) {
    Selection& selection = selection_of(plan);
    const int64_t count = 1 + random_.below(2);
    for (int64_t i = 0; i < count; ++i) {
      switch (random_.below(has_grid_ ? 5 : 3)) {
        case 0:
          selection.predicates.emplace_back(
              BandPredicate{random_.below(1 + kv_len() / 2), random_.one_in(2)});
          break;
        case 1:
          selection.predicates.emplace_back(CausalPredicate{random_.one_in(2)});
          break;
        case 2:
          selection.predicates.emplace_back(StoredPredicate{
              random_.uniform({items(), heads(), q_len(), kv_len()}).lt(0.4).to(device_)});
          break;
        case 3:
          selection.predicates.emplace_back(DiscPredicate{1 + 0.5 * double(random_.below(9))});
          break;
        default:
          selection.predicates.emplace_back(window());
      }
    }
  }
  WindowPredicate window() {
    WindowPredicate out;
    for (const Segment& segment : q_layout_.segments()) {
      if (segment.kind != Segment::Kind::grid) continue;
      for (size_t axis = 0; axis < 3; ++axis) {
        const int64_t length = segment.grid[axis];
        AxisWindow& rule = out.axes[axis];
        rule.size = random_.below(length + 1);
        if (rule.size == 0) continue;
        rule.stride = 1 + random_.below(rule.size);
        rule.dilation = 1 + random_.below(length / rule.size);
        rule.causal = random_.one_in(4);
      }
    }
    return out;
  }

  GivenKeys given() {
    const int64_t count = random_.of(std::vector<int64_t>{1, 5, 16, 33, 70});
    const int64_t own = random_.of(std::vector<int64_t>{1, kv_heads_, heads_});
    GivenKeys keys{.k = random_.normal({batch_, own, count, dim_}).to(device_, dtype_),
                   .v = random_.normal({batch_, own, count, value_dim_}).to(device_, dtype_),
                   .bias = at::Tensor()};
    if (random_.one_in(2)) {
      keys.bias = random_.normal({items(), heads(), count}).mul(4).round().div(2).to(device_);
    }
    return keys;
  }
  std::string add_given(AttentionPlan& plan, bool alone) {
    if (!alone) plan.branches.push_back({SoftmaxBranch{}, 0});
    auto& branch = std::get<SoftmaxBranch>(plan.branches.back().kind);
    branch.keys = given();
    if (random_.one_in(2)) {
      branch.selection.q_blocks = axis(heads_, q_layout_, plan.q_order);
      branch.selection.kv_blocks =
          BlockAxis::uniform(TokenLayout::extra(branch.keys->k.size(2)), 16);
      branch.selection.classes = classes(branch.selection.q_blocks, branch.selection.kv_blocks, 2);
    }
    if (alone) return "given keys";
    if (random_.one_in(2)) {
      ReuseBranch earlier{.out = random_.normal({batch_, heads_, q_len(), value_dim_}).to(device_),
                          .lse = random_.normal({batch_, heads_, q_len()}).mul(3).to(device_)};
      earlier.lse = earlier.lse.masked_fill(earlier.lse.gt(5), -kInfinity);
      plan.branches.push_back({earlier, 0});
    }
    return "merged";
  }
  void set_weights(AttentionPlan& plan) {
    for (size_t i = 0; i < plan.num_groups(); ++i) {
      const std::vector<std::vector<int64_t>> shapes = {
          {1, heads_, 1, 1}, {q_len(), 1}, {batch_, heads_, q_len(), 1}, {value_dim_}};
      plan.group_weights.push_back(
          random_.one_in(3) ? at::Tensor() : random_.uniform(random_.of(shapes)).to(device_));
    }
  }
  std::string add_linear(AttentionPlan& plan) {
    const std::vector<FeatureMap> maps = {FeatureMap::softmax, FeatureMap::elu_plus_one,
                                          FeatureMap::relu};
    LinearBranch linear{.feature_map = random_.of(maps), .epsilon = 1e-3};
    if (!random_.one_in(3)) linear.complement_of = 0;
    if (random_.one_in(2)) {
      linear.proj_weight = random_.normal({value_dim_, value_dim_}).div(8).to(device_);
      linear.proj_bias = random_.normal({value_dim_}).to(device_);
    }
    plan.branches.push_back({linear, 1});
    set_weights(plan);
    return "linear";
  }
  std::string add_pooled(AttentionPlan& plan) {
    PooledValuesBranch branch;
    branch.q_blocks = axis(heads_, q_layout_, plan.q_order);
    branch.kv_blocks = axis(kv_heads_, kv_layout_, plan.kv_order);
    branch.weights = random_
                         .uniform({items(), heads(), branch.q_blocks.num_blocks(),
                                   branch.kv_blocks.num_blocks()})
                         .to(device_);
    plan.branches.push_back({branch, 1});
    set_weights(plan);
    return "pooled values";
  }
  std::string quantize(AttentionPlan& plan) {
    const auto format = [&] { return random_.one_in(2) ? NumberFormat::int8 : NumberFormat::e4m3; };
    const auto unit = [&](ScaleUnit own) {
      return random_.of(std::vector<ScaleUnit>{ScaleUnit::head, ScaleUnit::block, own});
    };
    Precision& precision = std::get<SoftmaxBranch>(plan.branches[0].kind).precision;
    precision.q = {format(), unit(ScaleUnit::token)};
    precision.k = {format(), unit(ScaleUnit::token)};
    if (random_.one_in(2)) precision.v = {format(), unit(ScaleUnit::channel)};
    if (random_.one_in(2)) precision.p = {format(), unit(ScaleUnit::head)};
    precision.smooth_k = random_.one_in(2);
    return "quantized";
  }

  // Changes a dense plan, and says what it has become.
  std::string make_plan(AttentionPlan& plan, AttentionCall& call) {
    const int64_t kind = random_.below(100);
    if (kind < 15) return "dense";
    set_orders(plan);
    if (kind < 24) {
      if (random_.one_in(2)) set_blocks(plan, 2);
      set_predicates(plan);
      return "predicates";
    }
    if (kind < 32) return add_given(plan, /*alone=*/true);
    if (kind < 45) {
      const int64_t count = 1 + random_.below(3);
      set_blocks(plan, 2 + count);
      for (int64_t i = 0; i < count; ++i) {
        selection_of(plan).summaries.push_back(
            {.pool = random_.of(std::vector<int64_t>{0, 0, 5, 16}),
             .log_count = !random_.one_in(3)});
      }
      return "summaries";
    }
    set_blocks(plan, 2);
    if (kind < 70) return "blocks";
    if (kind < 80) return add_given(plan, /*alone=*/false);
    if (kind < 90) return add_linear(plan);
    if (kind < 95) return add_pooled(plan);
    call.needs_lse = false;
    // Of ordinary numbers: where one element makes the logits, one step of an integer, which may be
    // rounded either way, is another softmax; and integers hold no NaN.
    call.q = random_.normal(call.q.sizes()).to(device_, dtype_);
    call.k = random_.normal(call.k.sizes()).to(device_, dtype_);
    return quantize(plan);
  }

  Random random_;
  at::ScalarType dtype_;
  at::Device device_;
  int64_t batch_ = 1, heads_ = 1, kv_heads_ = 1, dim_ = 8, value_dim_ = 8;
  TokenLayout q_layout_, kv_layout_;
  bool has_grid_ = false;
  int64_t law_ = 0;
};

}  // namespace

uint64_t Random::next() {
  uint64_t x = state_ += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

at::Tensor Random::normal(at::IntArrayRef sizes) {
  return at::randn(sizes, at::make_generator<at::CPUGeneratorImpl>(next()), at::kFloat);
}

at::Tensor Random::uniform(at::IntArrayRef sizes) {
  return at::rand(sizes, at::make_generator<at::CPUGeneratorImpl>(next()), at::kFloat);
}

at::Tensor Random::permutation(int64_t items, int64_t heads, int64_t length) {
  return std::get<1>(uniform({items, heads, length}).sort(2)).to(at::kInt);
}

std::string Problem::describe() const {
  return fovea::str("problem ", number, " (", kind, "): ", plan.describe(), "; q ", call.q.sizes(),
                    " ", call.q.scalar_type(), " strides ", call.q.strides(), ", ",
                    call.q_layout.describe(), "; k ", call.k.sizes(), " strides ", call.k.strides(),
                    ", ", call.kv_layout.describe(), call.bias.defined() ? "; bias" : "");
}

Problem make_problem(int64_t number, at::ScalarType dtype, at::Device device) {
  return Maker(static_cast<uint64_t>(number), dtype, device).make(number);
}

Problem make_retrieval(int64_t number, at::ScalarType dtype, at::Device device) {
  return Maker(static_cast<uint64_t>(number) + 1'000'003, dtype, device).retrieval(number);
}

Problem make_gain(int64_t number, at::ScalarType dtype, at::Device device) {
  return Maker(static_cast<uint64_t>(number) + 2'000'003, dtype, device).gain(number);
}

}  // namespace fovea::test
