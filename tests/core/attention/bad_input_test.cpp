// What callers hand to attention by mistake: refused by name, or computed as the formula says.

#include <limits>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/functional.h"
#include "core/check.h"
#include "tests/support/files.h"
#include "tests/support/golden.h"

namespace fovea {
namespace {

using test::expect_error;
using test::relative_error;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
const std::vector<std::string> kExecutors = {"auto", "checked", "reference"};

AttentionCall draw(const TokenLayout& layout, int64_t heads = 4, int64_t kv_heads = 2) {
  at::manual_seed(7);
  const int64_t tokens = layout.seq_len();
  return {.q_layout = layout,
          .kv_layout = layout,
          .q = at::randn({2, heads, tokens, 8}),
          .k = at::randn({2, kv_heads, tokens, 8}),
          .v = at::randn({2, kv_heads, tokens, 6}),
          .needs_lse = true};
}

AttentionPlan plan_of_blocks(const TokenLayout& layout, const at::Tensor& classes) {
  AttentionPlan plan = AttentionPlan::dense("blocks");
  Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
  selection.q_blocks = selection.kv_blocks = BlockAxis::uniform(layout, 4);
  selection.classes = classes;
  return plan;
}

AttentionResult dense(const AttentionCall& call) {
  return run_plan(AttentionPlan::dense("dense"), call, "reference");
}

TEST(BadInput, RowsWithoutABlockAreZero) {
  const TokenLayout layout = TokenLayout::sequence(12);
  const AttentionCall call = draw(layout);
  at::Tensor classes = at::ones({1, 1, 3, 3}, at::kByte);
  classes[0][0][1].zero_();
  for (const std::string& executor : kExecutors) {
    const AttentionResult got = run_plan(plan_of_blocks(layout, classes), call, executor);
    EXPECT_EQ(got.out.slice(2, 4, 8).abs().max().item<float>(), 0) << executor;
    EXPECT_TRUE(got.lse.slice(2, 4, 8).isneginf().all().item<bool>()) << executor;
    const AttentionResult whole = dense(call);
    EXPECT_LE(relative_error(got.out.slice(2, 8), whole.out.slice(2, 8)), 1e-6) << executor;
    const at::Tensor nothing = at::zeros({1, 1, 3, 3}, at::kByte);
    const AttentionResult none = run_plan(plan_of_blocks(layout, nothing), call, executor);
    EXPECT_EQ(none.out.abs().max().item<float>(), 0) << executor;
    EXPECT_TRUE(none.lse.isneginf().all().item<bool>()) << executor;
  }
}

TEST(BadInput, BlocksThatCoverOtherTokensAreRefused) {
  const TokenLayout layout = TokenLayout::sequence(12);
  const AttentionCall call = draw(layout);
  const auto refused = [&](const BlockAxis& axis, const at::Tensor& classes,
                           const std::string& text) {
    AttentionPlan plan = plan_of_blocks(layout, classes);
    Selection& selection = std::get<SoftmaxBranch>(plan.branches[0].kind).selection;
    selection.q_blocks = selection.kv_blocks = axis;
    try {
      run_plan(plan, call);
      ADD_FAILURE() << "nothing thrown, expected: " << text;
    } catch (const Error& error) {
      EXPECT_NE(error.code(), ErrorCode::internal) << error.what();
      EXPECT_NE(error.reason().find(text), std::string::npos) << error.what();
    }
  };
  const auto classes = [](int64_t blocks) { return at::ones({1, 1, blocks, blocks}, at::kByte); };
  const auto offsets = [](std::vector<int64_t> values) {
    return at::tensor(values, at::kLong).view({1, 1, -1});
  };
  refused({}, classes(0), "query blocks cover 0 positions of 12");
  refused(BlockAxis::from_host({0}), classes(0), "query blocks cover 0 positions of 12");
  refused(BlockAxis::from_host({0, 4, 8}), classes(2), "query blocks cover 8 positions of 12");
  refused(BlockAxis::from_host({0, 4, 16}), classes(2), "query blocks cover 16 positions of 12");
  refused(BlockAxis::from_offsets(offsets({0}), 12), classes(0), "do not ascend from 0 to 12");
  refused(BlockAxis::from_offsets(offsets({0, (int64_t{1} << 32) + 3, 12}), 12), classes(2),
          "do not ascend from 0 to 12");
  refused(BlockAxis::from_offsets(offsets({0, 4, 12}), 8), classes(3), "expected a class map");
  expect_error(ErrorCode::usage, "ascend from 0", [] { BlockAxis::from_host({0, 8, 4}); });
  expect_error(ErrorCode::usage, "ascend from 0", [] { BlockAxis::from_host({}); });
  expect_error(ErrorCode::usage, "blocks of 0 positions", [&] { BlockAxis::uniform(layout, 0); });
}

TEST(BadInput, NanInAQueryStaysInItsRow) {
  const TokenLayout layout = TokenLayout::sequence(40);
  AttentionCall call = draw(layout);
  const at::Tensor clean = dense(call).out;
  call.q[1][2][17][3] = kNan;
  for (const std::string& executor : kExecutors) {
    at::Tensor out = run_plan(AttentionPlan::dense("dense"), call, executor).out.clone();
    EXPECT_TRUE(out[1][2][17].isnan().all().item<bool>()) << executor;
    out[1][2][17] = clean[1][2][17];
    EXPECT_LE(relative_error(out, clean), 1e-6) << executor;
  }
}

TEST(BadInput, NanInAKeyReachesAllThatSeeItAndNoOthers) {
  const TokenLayout layout = TokenLayout::sequence(12);
  AttentionCall call = draw(layout);
  call.k[0][1][9][0] = kNan;
  const at::Tensor classes = at::eye(3, at::kByte).view({1, 1, 3, 3});
  for (const std::string& executor : kExecutors) {
    const at::Tensor out = run_plan(plan_of_blocks(layout, classes), call, executor).out;
    at::Tensor bad = at::zeros({2, 4, 12}, at::kBool);
    bad[0].slice(0, 2, 4).slice(1, 8, 12).fill_(true);
    EXPECT_TRUE(out.isnan().all(3).equal(bad)) << executor;
    EXPECT_TRUE(out.isnan().any(3).equal(bad)) << executor;
  }
}

TEST(BadInput, TextOfNoTokensIsNoText) {
  const TokenLayout video = TokenLayout::grid(2, 4, 4);
  TokenLayout empty = video, hidden = video;
  empty.append(TokenLayout::text(0));
  hidden.append(TokenLayout::text(5, at::zeros({2}, at::kLong)));
  const std::map<std::string, Json> planners = {
      {"dense", Json::object()},
      {"radial", {{"block", 16}}},
      {"window", {{"tile", {1, 2, 2}}, {"window", {1, 1, 1}}}},
      {"topk", {{"density", 0.5}, {"block_q", 16}, {"block_kv", 16}}}};
  for (const auto& [planner, options] : planners) {
    AttentionOptions how{.planner = planner, .planner_options = options};
    how.q_layout = how.kv_layout = video;
    const AttentionCall call = draw(video);
    const AttentionResult expected = attention(call.q, call.k, call.v, how);
    how.role = AttentionRole::joint;
    how.q_layout = how.kv_layout = empty;
    const AttentionResult got = attention(call.q, call.k, call.v, how);
    EXPECT_LE(relative_error(got.out, expected.out), 1e-6) << planner;
    EXPECT_LE(relative_error(got.lse, expected.lse), 1e-6) << planner;
    if (planner == "topk") continue;  // whose budget counts the block of text that it cannot read
    how.q_layout = how.kv_layout = hidden;
    const auto longer = [](const at::Tensor& x) { return at::constant_pad_nd(x, {0, 0, 0, 5}, 9); };
    const at::Tensor padded =
        attention(longer(call.q), longer(call.k), longer(call.v), how).out.slice(2, 0, 32);
    EXPECT_LE(relative_error(padded, expected.out), 1e-6) << planner;
  }
}

TEST(BadInput, LayoutsThatAreNotTheSequenceAreRefused) {
  const AttentionCall call = draw(TokenLayout::sequence(12));
  const auto refused = [&](const TokenLayout& q, const TokenLayout& kv, const std::string& text) {
    AttentionOptions options{.q_layout = q, .kv_layout = kv};
    expect_error(ErrorCode::bad_data, text, [&] { attention(call.q, call.k, call.v, options); });
  };
  const TokenLayout right = TokenLayout::grid(1, 3, 4), wrong = TokenLayout::grid(1, 3, 5);
  refused(wrong, right, "tensor 'q': expected the tokens of its layout, grid 1x3x5");
  refused(right, wrong, "tensor 'k': expected the tokens of its layout, grid 1x3x5");
  TokenLayout with_text = right;
  refused(right, with_text.append(TokenLayout::text(1)), "grid 1x3x4 + text 1");
  refused(right, TokenLayout::text(12, at::ones({3}, at::kLong)), "expected int64 [2]");
  refused(right, TokenLayout::text(12, at::ones({2})), "expected int64 [2]");
  const int64_t large = int64_t{1} << 32;  // its products are 0 in 64 bits
  expect_error(ErrorCode::usage, "too many tokens", [&] { TokenLayout::grid(large, large, 12); });
  expect_error(ErrorCode::usage, "too many tokens", [&] {
    TokenLayout::text(std::numeric_limits<int64_t>::max()).append(TokenLayout::text(13));
  });
  expect_error(ErrorCode::usage, "negative", [] { TokenLayout::text(-1); });
}

// Lengths are data, which may lie on a device: more than all counts as all, fewer than none as
// none.
TEST(BadInput, LengthsOutsideTheSequenceAreCutOff) {
  AttentionCall call = draw(TokenLayout::sequence(12));
  call.kv_layout = TokenLayout::sequence(12, at::tensor({99, -3}, at::kLong));
  AttentionCall right = call;
  right.kv_layout = TokenLayout::sequence(12, at::tensor({12, 0}, at::kLong));
  const AttentionResult expected = dense(right);
  for (const std::string& executor : kExecutors) {
    const AttentionResult got = run_plan(AttentionPlan::dense("dense"), call, executor);
    EXPECT_LE(relative_error(got.out, expected.out), 1e-6) << executor;
    EXPECT_TRUE(got.lse[1].isneginf().all().item<bool>()) << executor;
  }
}

TEST(BadInput, HeadsWithoutChannelsAreRefused) {
  const AttentionCall call = draw(TokenLayout::sequence(12));
  for (const std::string& executor : kExecutors) {
    AttentionOptions options;
    options.executor = executor;
    expect_error(ErrorCode::bad_data, "tensor 'q': expected at least one channel",
                 [&] { attention(call.q.slice(3, 0, 0), call.k.slice(3, 0, 0), call.v, options); });
    expect_error(ErrorCode::bad_data, "tensor 'v': expected at least one channel",
                 [&] { attention(call.q, call.k, call.v.slice(3, 0, 0), options); });
  }
}

TEST(BadInput, HeadsThatDoNotGoTogetherAreRefused) {
  const AttentionCall call = draw(TokenLayout::sequence(12));
  const auto refused = [](const std::string& text, const at::Tensor& q, const at::Tensor& k,
                          const at::Tensor& v) {
    expect_error(ErrorCode::bad_data, text, [&] { attention(q, k, v); });
  };
  refused("tensor 'k': expected heads that divide", call.q.slice(1, 0, 3), call.k, call.v);
  refused("tensor 'k': expected heads that divide", call.q, call.k.slice(1, 0, 0),
          call.v.slice(1, 0, 0));
  refused("tensor 'k': expected heads that divide", call.q.slice(1, 0, 1), call.k, call.v);
  refused("tensor 'v': expected batch, heads", call.q, call.k, call.v.slice(1, 0, 1));
  refused("tensor 'k': expected batch", call.q, call.k.slice(0, 0, 1), call.v.slice(0, 0, 1));
}

TEST(BadInput, NothingToComputeIsNothing) {
  const AttentionCall call = draw(TokenLayout::sequence(12));
  for (const std::string& executor : kExecutors) {
    AttentionOptions options;
    options.executor = executor;
    const auto none = [](const at::Tensor& x, int64_t axis) { return x.slice(axis, 0, 0); };
    const AttentionResult batch =
        attention(none(call.q, 0), none(call.k, 0), none(call.v, 0), options);
    EXPECT_EQ(batch.out.sizes(), at::IntArrayRef({0, 4, 12, 6})) << executor;
    const AttentionResult heads = attention(none(call.q, 1), call.k, call.v, options);
    EXPECT_EQ(heads.out.sizes(), at::IntArrayRef({2, 0, 12, 6})) << executor;
    const AttentionResult rows = attention(none(call.q, 2), call.k, call.v, options);
    EXPECT_EQ(rows.lse.sizes(), at::IntArrayRef({2, 4, 0})) << executor;
    const AttentionResult keys = attention(call.q, none(call.k, 2), none(call.v, 2), options);
    EXPECT_EQ(keys.out.abs().max().item<float>(), 0) << executor;
    EXPECT_TRUE(keys.lse.isneginf().all().item<bool>()) << executor;
  }
}

// LibTorch has no negative strides.
TEST(BadInput, StridesOfAnyKindAreTaken) {
  const AttentionCall call = draw(TokenLayout::sequence(12));
  const std::vector<at::Tensor> all = {call.q, call.k, call.v};
  const auto seen = [&](const auto& view) {
    std::vector<at::Tensor> x;
    for (const at::Tensor& tensor : all) x.push_back(view(tensor));
    for (const std::string& executor : kExecutors) {
      AttentionOptions options;
      options.executor = executor;
      const AttentionResult got = attention(x[0], x[1], x[2], options);
      const AttentionResult expected =
          attention(x[0].contiguous(), x[1].contiguous(), x[2].contiguous(), options);
      EXPECT_LE(relative_error(got.out, expected.out), 1e-6) << executor;
      EXPECT_LE(relative_error(got.lse, expected.lse), 1e-6) << executor;
    }
  };
  for (const int64_t axis : {0, 1, 2, 3}) {
    seen([&](const at::Tensor& x) { return x.narrow(axis, 0, 1).expand(x.sizes()); });
    seen([&](const at::Tensor& x) { return at::cat({x, x}, axis).slice(axis, 0, {}, 2); });
  }
  seen([](const at::Tensor& x) { return x.flip(2); });
  seen([](const at::Tensor& x) { return x.transpose(2, 3).contiguous().transpose(2, 3); });
  seen([](const at::Tensor& x) { return at::constant_pad_nd(x, {1, 2}).slice(3, 1, -2); });
}

// Only shapes: these tensors take no memory.
TEST(BadInput, MoreTokensThan32BitsNumberAreRefused) {
  const int64_t tokens = int64_t{1} << 31;
  const auto wide = [](int64_t heads, int64_t length) {
    return at::zeros({1, 1, 1, 4}).expand({1, heads, length, 4});
  };
  for (const std::string& executor : kExecutors) {
    AttentionOptions options;
    options.executor = executor;
    expect_error(ErrorCode::bad_data, "tensor 'q': expected at most 2147483647 tokens",
                 [&] { attention(wide(2, tokens), wide(2, 3), wide(2, 3), options); });
    expect_error(ErrorCode::bad_data, "tensor 'k': expected at most 2147483647 tokens",
                 [&] { attention(wide(2, 3), wide(2, tokens), wide(2, tokens), options); });
  }
  const int64_t nearly = tokens - 8;
  AttentionOptions options;
  options.executor = "cpu";
  expect_error(ErrorCode::device, "takes up to 2147483391 tokens",
               [&] { attention(wide(1, 3), wide(1, nearly), wide(1, nearly), options); });
}

}  // namespace
}  // namespace fovea
