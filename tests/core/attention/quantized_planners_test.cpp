// Planners whose branches are quantized: FPSAttention and PAROAttention.

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/reference.h"
#include "core/attention/planner.h"
#include "core/check.h"
#include "core/weights.h"
#include "tests/support/attention_cases.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::expect_error;
using test::relative_error;

const SoftmaxBranch& branch_of(const AttentionPlan& plan) {
  return std::get<SoftmaxBranch>(plan.branches[0].kind);
}

AttentionPlan plan_of(const std::string& name, const Json& options, const AttentionCall& call) {
  AttentionPlan plan = make_planner(name, options)->plan(call);
  validate(plan, call);
  return plan;
}

// Coordinates of a row of the only grid, or nothing.
std::optional<std::array<int64_t, 3>> place(const TokenLayout& layout, int64_t row) {
  for (const Segment& segment : layout.segments()) {
    if (row < segment.capacity) {
      if (segment.kind != Segment::Kind::grid) return std::nullopt;
      const auto& grid = segment.grid;
      return std::array<int64_t, 3>{row / grid[2] / grid[1], row / grid[2] % grid[1],
                                    row % grid[2]};
    }
    row -= segment.capacity;
  }
  return std::nullopt;
}

// Tiles at most window / (2 tile) apart on each axis.
at::Tensor window_pairs(const AttentionCall& call, std::array<int64_t, 3> tile,
                        std::array<int64_t, 3> window) {
  const int64_t length = call.q.size(2);
  at::Tensor pairs = at::ones({length, length}, at::kBool);
  auto seen = pairs.accessor<bool, 2>();
  for (int64_t i = 0; i < length; ++i) {
    for (int64_t j = 0; j < length; ++j) {
      const auto a = place(call.q_layout, i), b = place(call.kv_layout, j);
      for (size_t axis = 0; axis < 3 && a && b; ++axis) {
        const auto u = static_cast<double>((*a)[axis] / tile[axis]);
        const auto v = static_cast<double>((*b)[axis] / tile[axis]);
        const double reach =
            static_cast<double>(window[axis]) / (2 * static_cast<double>(tile[axis]));
        if (std::abs(u - v) > reach) seen[i][j] = false;
      }
    }
  }
  return pairs.expand({2, 4, length, length});
}

TEST(FpsPlanner, SeesTheTilesWithinItsWindow) {
  at::manual_seed(1);
  for (const TokenLayout& layout : test::awkward_layouts()) {
    const AttentionCall call = test::awkward_call(layout);
    for (const std::array<int64_t, 3>& window :
         {std::array<int64_t, 3>{1, 4, 4}, {2, 3, 12}, {4, 8, 7}}) {
      const Json options = {{"tile", {1, 2, 4}}, {"window", window}, {"precision", "storage"}};
      const AttentionPlan plan = plan_of("fps", options, call);
      EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out,
                               test::direct_attention(call, window_pairs(call, {1, 2, 4}, window))),
                1e-10)
          << layout.describe();
    }
  }
}

// One head's e4m3 numbers with a scale for each unit: a way around the planner's own.
at::Tensor e4m3(const at::Tensor& x, const at::Tensor& amax) {
  const at::Tensor scale = (amax / 448).masked_fill(amax.eq(0), 1);
  return (x / scale).to(at::kFloat8_e4m3fn).to(at::kFloat) * scale;
}

// Two tiles of 1 x 2 x 4 side by side: scales per tile of q and k, per channel of v, weights
// relative to a power of 2.
TEST(FpsPlanner, ATileIsTheUnitOfAScale) {
  at::manual_seed(2);
  AttentionCall call = test::awkward_call(TokenLayout::grid(1, 2, 8));
  for (at::Tensor* x : {&call.q, &call.k, &call.v}) *x = x->to(at::kFloat);
  call.k.slice(2, 4, 8).mul_(30);
  call.k.slice(2, 12, 16).mul_(30);
  const AttentionPlan plan = plan_of("fps", {{"tile", {1, 2, 4}}, {"window", {9, 9, 99}}}, call);
  const auto per_tile = [](const at::Tensor& x) {
    const at::Tensor tiles = x.view({2, -1, 2, 2, 4, 8});  // [.., height, tile, width, channel]
    return e4m3(tiles, tiles.abs().amax({2, 4, 5}, true)).view(x.sizes());
  };
  const at::Tensor q = per_tile(call.q), k = per_tile(call.k).repeat_interleave(2, 1);
  const at::Tensor v = e4m3(call.v, call.v.abs().amax(2, true)).repeat_interleave(2, 1);
  const at::Tensor logits = at::matmul(q, k.transpose(2, 3)) / std::sqrt(8.0f);
  const at::Tensor top = logits.amax(3, true), power = top / std::log(2.0f);
  const at::Tensor number = (8 + power - power.ceil()).exp2();  // of the largest
  const at::Tensor p = e4m3((logits - top).exp() * number, at::full({1}, 448)) / number;
  const at::Tensor expected = at::matmul(p, v) / p.sum(3, true);
  EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, expected), 1e-6);
  EXPECT_EQ(branch_of(plan).precision.describe(),
            "q e4m3 per block, k e4m3 per block, v e4m3 per channel, p e4m3 per head");
}

TEST(FpsPlanner, ChangesTileAndWindowDuringTheSteps) {
  AttentionCall call = test::awkward_call(TokenLayout::grid(4, 8, 8));
  const auto planner = make_planner("fps", {{"tile", {4, 4, 4, 1, 4, 4, 2, 4, 4}},
                                            {"window", {4, 4, 4, 99, 99, 99, 4, 8, 8}},
                                            {"switch", {0.2, 0.6}}});
  call.context.num_steps = 10;
  std::vector<int64_t> blocks;
  std::vector<std::string> keys;
  for (call.context.step = 0; call.context.step < 10; ++call.context.step) {
    blocks.push_back(branch_of(planner->plan(call)).selection.q_blocks.num_blocks());
    keys.push_back(planner->cache_key(call));
  }
  EXPECT_EQ(blocks, (std::vector<int64_t>{4, 4, 16, 16, 16, 16, 8, 8, 8, 8}));
  for (size_t i = 1; i < keys.size(); ++i) {
    EXPECT_EQ(keys[i] == keys[i - 1], blocks[i] == blocks[i - 1]);
  }
  // Without a window every tile sees itself alone.
  call.context.step = 0;
  EXPECT_NEAR(block_density(branch_of(planner->plan(call)).selection, at::kCPU).item<double>(),
              0.25, 1e-7);
}

TEST(FpsPlanner, RefusesOddNumbersOfSides) {
  expect_error(ErrorCode::usage, "three times three", [] {
    make_planner("fps", {{"tile", {1, 2, 3, 4}}});
  });
  expect_error(ErrorCode::usage, "ascending", [] {
    make_planner("fps", {{"switch", {0.5, 0.2}}});
  });
}

// A plan file with masks for two key heads, written as its format says.
class ParoFile : public testing::Test {
 protected:
  ParoFile() {
    layout_.append(TokenLayout::grid(3, 4, 5));
    at::manual_seed(3);
    call_ = test::awkward_call(layout_);
    call_.layer = 1;
    call_.context.num_steps = 8;
    mask_ = at::randint(2, {4, 5, 5}).to(at::kByte);  // blocks: 1 of text, 4 of the grid
    json_ = {{"block", 16},
             {"axes", {{"FHW"}, {"HWF", "WFH"}}},
             {"masks", "masks.safetensors"},
             {"layout", layout_.describe()},
             {"buckets", 4}};
  }
  std::string write() {
    at::Tensor bytes = at::zeros({4, 5, 1}, at::kByte);
    for (int64_t j = 0; j < 5; ++j) bytes.select(2, 0).add_(mask_.select(2, j) * (1 << j));
    save_tensors(folder_.path / "masks.safetensors", {{"layer.1.bucket.1", bytes}}, true);
    test::write_bytes(folder_.path / "plan.json", json_.dump());
    return (folder_.path / "plan.json").string();
  }
  // The row of each position of the grid with its axes sorted anew, by three loops.
  static std::vector<int64_t> sorted(const std::string& axes) {
    const std::map<char, std::array<int64_t, 2>> of = {
        {'F', {3, 20}}, {'H', {4, 5}}, {'W', {5, 1}}};
    std::vector<int64_t> out;
    for (int64_t a = 0; a < of.at(axes[0])[0]; ++a) {
      for (int64_t b = 0; b < of.at(axes[1])[0]; ++b) {
        for (int64_t c = 0; c < of.at(axes[2])[0]; ++c) {
          out.push_back(6 + a * of.at(axes[0])[1] + b * of.at(axes[1])[1] + c * of.at(axes[2])[1]);
        }
      }
    }
    return out;
  }
  // Pairs that the mask keeps; text sees and is seen.
  at::Tensor pairs() const {
    at::Tensor out = at::ones({2, 4, 66, 66}, at::kBool);
    for (int64_t h = 0; h < 4; ++h) {
      const std::vector<int64_t> rows = sorted(h < 2 ? "HWF" : "WFH");
      for (size_t i = 0; i < rows.size(); ++i) {
        for (size_t j = 0; j < rows.size(); ++j) {
          const bool kept =
              mask_[h][static_cast<int64_t>(1 + i / 16)][static_cast<int64_t>(1 + j / 16)]
                  .item<bool>();
          out.select(1, h).select(1, rows[i]).select(1, rows[j]).fill_(kept);
        }
      }
    }
    return out;
  }

  test::TemporaryFolder folder_;
  TokenLayout layout_ = TokenLayout::text(6, at::tensor({6, 2}, at::kLong));
  AttentionCall call_;
  at::Tensor mask_;
  Json json_;
};

TEST_F(ParoFile, KeepsItsBlocksInTheOrderOfEachHead) {
  call_.context.step = 3;  // of 8, in bucket 1 of 4
  const AttentionPlan plan = plan_of("paro", {{"file", write()}, {"precision", "storage"}}, call_);
  const at::Tensor expected = test::direct_attention(call_, pairs());
  EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call_).out, expected), 1e-10);
  EXPECT_EQ(plan.q_order.describe(), "axes 1.2.0 1.2.0 2.0.1 2.0.1");
  EXPECT_EQ(plan.kv_order.describe(), "axes 1.2.0 2.0.1");
}

// Buckets of two steps; the last mask stays, and before the first all is seen.
TEST_F(ParoFile, TakesTheMaskOfItsSteps) {
  const auto planner = make_planner("paro", {{"file", write()}, {"precision", "storage"}});
  for (call_.context.step = 0; call_.context.step < 8; ++call_.context.step) {
    EXPECT_EQ(branch_of(planner->plan(call_)).selection.classes.defined(), call_.context.step >= 2);
  }
  const std::string key = planner->cache_key(call_);
  call_.layer = 0;
  EXPECT_NE(planner->cache_key(call_), key);
  EXPECT_FALSE(branch_of(planner->plan(call_)).selection.classes.defined());
  EXPECT_EQ(planner->plan(call_).q_order.describe(), "axes 0.1.2");
  call_.layer = 2;
  expect_error(ErrorCode::usage, "not layer 2", [&] { planner->plan(call_); });
}

TEST_F(ParoFile, IsRefusedForWhatItIsNotFor) {
  const auto planner = make_planner("paro", {{"file", write()}});
  call_.context.step = 7;
  AttentionCall other = test::awkward_call(TokenLayout::grid(3, 4, 6));
  other.layer = 1;
  expect_error(ErrorCode::usage, "the masks are for text 6 + grid 3x4x5",
               [&] { planner->plan(other); });
  AttentionCall heads = call_;
  heads.q = heads.k = heads.v = at::zeros({2, 3, 66, 8}, at::kDouble);
  expect_error(ErrorCode::usage, "axes for 2 heads, the call has 3", [&] { planner->plan(heads); });
  save_tensors(folder_.path / "masks.safetensors",
               {{"layer.1.bucket.0", at::zeros({4, 5, 2}, at::kByte)}}, true);
  expect_error(ErrorCode::bad_data, "expected U8 [1 or 4, 5, 1]", [&] { planner->plan(call_); });
}

TEST_F(ParoFile, IsCheckedWhenItIsRead) {
  const auto refuse = [&](const char* words, const char* key, const Json& value) {
    const Json kept = json_;
    json_[key] = value;
    const std::string path = write();
    expect_error(ErrorCode::bad_data, words, [&] { make_planner("paro", {{"file", path}}); });
    json_ = kept;
  };
  refuse("HWF", "axes", {{"HWW"}});
  refuse("HWF", "axes", {{1}});
  refuse("array of layers", "axes", "HWF");
  refuse("same folder", "masks", "../masks.safetensors");
  refuse("layout", "layout", "");
  refuse("colour", "colour", 1);
  refuse("missing.safetensors", "masks", "missing.safetensors");
  expect_error(ErrorCode::bad_data, "nowhere.json", [] {
    make_planner("paro", {{"file", "/nowhere.json"}});
  });
  expect_error(ErrorCode::usage, "axes", [] { make_planner("paro", {{"axes", "HWH"}}); });
}

// One block of each side: INT8 with one scale for each operand, weights too.
TEST(ParoPlanner, HasAScalePerBlock) {
  at::manual_seed(4);
  const AttentionCall call = test::awkward_call(TokenLayout::grid(2, 3, 4));
  const AttentionPlan plan = plan_of("paro", {{"axes", "WHF"}}, call);
  const auto int8 = [](const at::Tensor& x) {
    const at::Tensor scale = x.abs().amax({2, 3}, true) / 127;
    return at::round(x / scale) * scale;
  };
  const at::Tensor k = int8(call.k).repeat_interleave(2, 1),
                   v = int8(call.v).repeat_interleave(2, 1);
  const at::Tensor logits = at::matmul(int8(call.q), k.transpose(2, 3)) / std::sqrt(8.0);
  const at::Tensor p = int8((logits - logits.amax(3, true)).exp());
  const at::Tensor expected = at::matmul(p, v) / p.sum(3, true);
  EXPECT_LE(relative_error(ReferenceExecutor().run(plan, call).out, expected), 1e-10);
  EXPECT_EQ(plan.q_order.describe(), "axes 2.1.0");
}

}  // namespace
}  // namespace fovea
