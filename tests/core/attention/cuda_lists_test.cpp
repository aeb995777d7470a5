// Lists that a device makes beside those that the host makes, pair by pair.

#include "core/attention/executors/cuda_lists.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "core/attention/executors/cuda_keys.h"
#include "core/attention/lower.h"
#include "core/ops/gather_rows.h"
#include "tests/conformance/problems.h"
#include "tests/support/emulated_cuda.h"

namespace fovea {
namespace {

// bool [q_len, keys] by position, of a head of an item.
at::Tensor pairs_of(const HostLists& lists, int64_t head, int64_t q_len, int64_t keys) {
  at::Tensor out = at::zeros({q_len, keys}, at::kBool);
  const int64_t map = lists.maps == 1 ? 0 : head;
  const int32_t* q = lists.q_offsets.data() + map * (lists.num_q_blocks + 1);
  const int32_t* kv = lists.kv_offsets.data() + map * (lists.num_kv_blocks + 1);
  for (int64_t i = 0; i < lists.num_q_blocks; ++i) {
    const int64_t row = map * (lists.num_q_blocks + 1) + i;
    for (int64_t e = lists.row_ptr[row]; e < lists.row_ptr[row + 1]; ++e) {
      const int32_t j = lists.kv_index[e];
      const int64_t words = (kv[j + 1] - kv[j] + 63) / 64;
      const int64_t first = lists.bits_offset.empty() ? -1 : lists.bits_offset[e];
      for (int64_t a = q[i]; a < q[i + 1]; ++a) {
        for (int64_t b = kv[j]; b < kv[j + 1]; ++b) {
          const int64_t at = b - kv[j];
          const bool seen =
              first < 0 || (lists.bits[first + (a - q[i]) * words + at / 64] >> at % 64 & 1) != 0;
          if (seen) out.mutable_data_ptr<bool>()[a * keys + b] = true;
        }
      }
    }
  }
  return out;
}

at::Tensor pairs_of(const DeviceLists& lists, int64_t item, int64_t head, int64_t q_len,
                    int64_t keys) {
  at::Tensor out = at::zeros({q_len, keys}, at::kBool);
  const kernels::TileLists view = lists.view();
  const int64_t map = item * view.batch_stride + head * view.head_stride;
  for (int64_t t = 0; t < view.tiles_per_map; ++t) {
    const kernels::QueryTile tile = view.tiles[map * view.tiles_per_map + t];
    const int64_t row = map * view.rows + tile.row;
    for (int32_t e = 0; tile.len > 0 && e < view.counts[row]; ++e) {
      const kernels::KeySpan span = view.spans[row * view.capacity + e];
      for (int32_t i = 0; i < tile.len; ++i) {
        for (uint32_t k = 0; k < span.len; ++k) {
          bool seen = true;
          if (span.mask > 0) {
            const uint32_t* words =
                view.masks +
                ((span.mask - 1 + tile.part) * lists.tile.queries + i) * kernels::kMaskWords;
            seen = (words[k % 8 / 2] >> (k / 8 * 2 + k % 2) & 1) != 0;
          }
          if (seen) {
            out.mutable_data_ptr<bool>()[(tile.begin + i) * keys + span.begin + k] = true;
          }
        }
      }
    }
  }
  return out;
}

at::Tensor rows_of(const TokenOrder& order, const TokenLayout& layout, at::Device device) {
  if (order.is_identity()) return {};
  return order.rows(layout, device).to(at::kInt).contiguous();
}

DeviceLists lists_of(const test::Problem& problem, const SoftmaxBranch& branch,
                     bool of_columns = false) {
  const AttentionCall& call = problem.call;
  const Selection& selection = branch.selection;
  const at::Device device = call.q.device();
  ListsOf of{call,
             selection,
             selection.q_blocks,
             selection.kv_blocks,
             call.k.size(2),
             at::Tensor(),
             rows_of(problem.plan.q_order, call.q_layout, device),
             rows_of(problem.plan.kv_order, call.kv_layout, device)};
  if (!selection.classes.defined()) {
    of.q_blocks = default_blocks(call.q_layout);
    of.kv_blocks = default_blocks(call.kv_layout);
  }
  const at::Tensor fault = at::zeros({1}, at::device(device).dtype(at::kInt));
  DeviceLists lists;
  if (of_columns) {
    lists = make_columns(of, tile_of(of, &test::emulated_column_tile), fault);
  } else {
    lists = make_lists(of, tile_of(of, &test::emulated_tile), fault);
    if (!selection.predicates.empty()) cut_pairs(of, lists);
  }
  EXPECT_EQ(fault.item<int32_t>(), 0) << problem.describe();
  return lists;
}

// A row of a packed list as spans, and the keys of each of its steps.
struct PackedRow {
  std::vector<kernels::KeySpan> spans;
  std::vector<int32_t> steps;
};
PackedRow unpacked(const kernels::TileLists& lists, int64_t row) {
  PackedRow out;
  const kernels::PackedSpan* next = lists.packed + row * lists.capacity;
  for (int32_t step = 0; step < lists.counts[row]; ++step) {
    out.steps.push_back(0);
    do {
      EXPECT_EQ(static_cast<int32_t>(next->row), out.steps.back());
      out.spans.push_back({next->begin, next->len});
      out.steps.back() += static_cast<int32_t>(next->len);
    } while ((next++)->ends_step == 0);
  }
  return out;
}

// Calls f(problem, branch) for problems that have lists.
template <typename F>
int64_t for_each_problem(int64_t count, at::Device device, const F& f) {
  int64_t ran = 0;
  for (int64_t i = 0; i < count; ++i) {
    const test::Problem problem = test::make_problem(i, at::kFloat, device);
    const auto* branch = std::get_if<SoftmaxBranch>(&problem.plan.branches[0].kind);
    if (branch == nullptr || branch->keys || branch->selection.is_everything()) continue;
    if (!branch->precision.is_storage() || why_not_cut(branch->selection.predicates)) continue;
    f(problem, *branch);
    ++ran;
  }
  return ran;
}

TEST(CudaLists, HaveThePairsOfTheHostsLists) {
  const int64_t ran = for_each_problem(
      400, at::kCPU, [](const test::Problem& problem, const SoftmaxBranch& branch) {
        const AttentionCall& call = problem.call;
        if (call.q.size(0) > 2) return;
        const DeviceLists lists = lists_of(problem, branch);
        const std::vector<int64_t> places = summary_places(branch.selection, call.k.size(2));
        const int64_t keys = branch.selection.summaries.empty() ? call.k.size(2) : places.back();
        for (int64_t item = 0; item < call.q.size(0); ++item) {
          const HostLists expected = lower_with_summaries(problem.plan, branch, call, item);
          for (int64_t head = 0; head < call.q.size(1); ++head) {
            at::Tensor from_host = pairs_of(expected, head, call.q.size(2), keys);
            at::Tensor from_device = pairs_of(lists, item, head, call.q.size(2), keys);
            // Of shorter blocks the host lists means of nothing too.
            if (!branch.selection.summaries.empty()) {
              EXPECT_FALSE(from_device.logical_and(from_host.logical_not()).any().item<bool>())
                  << problem.describe();
              from_host = from_host.slice(1, 0, call.k.size(2));
              from_device = from_device.slice(1, 0, call.k.size(2));
            }
            ASSERT_TRUE(from_host.equal(from_device)) << problem.describe();
          }
        }
      });
  EXPECT_GE(ran, 100);
}

// Where columns are said to be on the grid.
void expect_on_grid(const DeviceLists& columns) {
  const kernels::TileLists view = columns.view();
  for (int64_t row = 0; row < columns.counts.numel(); ++row) {
    for (int32_t i = 0; i < view.counts[row]; ++i) {
      ASSERT_EQ(view.spans[row * view.capacity + i].begin % columns.tile.keys, 0);
    }
  }
}

TEST(CudaLists, ColumnsHaveThePairsOfRows) {
  int64_t summed = 0, masked = 0, on_grid = 0;
  const int64_t ran = for_each_problem(
      400, at::kCPU, [&](const test::Problem& problem, const SoftmaxBranch& branch) {
        const AttentionCall& call = problem.call;
        if (call.q.size(0) > 2) return;
        const DeviceLists rows = lists_of(problem, branch),
                          columns = lists_of(problem, branch, true);
        const int64_t q_len = call.q.size(2), own = call.k.size(2);
        const std::vector<int64_t> places = summary_places(branch.selection, own);
        const bool is_summed = !branch.selection.summaries.empty();
        const int64_t keys = is_summed ? places.back() : own;
        summed += is_summed, masked += columns.masks.defined(), on_grid += columns.on_grid;
        if (columns.on_grid) expect_on_grid(columns);
        for (int64_t item = 0; item < call.q.size(0); ++item) {
          for (int64_t head = 0; head < call.q.size(1); ++head) {
            const at::Tensor of_rows = pairs_of(rows, item, head, q_len, keys);
            const at::Tensor of_columns = pairs_of(columns, item, head, keys, q_len).t();
            ASSERT_TRUE(of_rows.slice(1, 0, own).equal(of_columns.slice(1, 0, own)))
                << problem.describe();
            // Of shorter blocks means of nothing too.
            ASSERT_FALSE(of_rows.logical_and(of_columns.logical_not()).any().item<bool>())
                << problem.describe();
            EXPECT_FALSE(is_summed && of_columns.slice(1, own, places[0]).any().item<bool>());
          }
        }
      });
  EXPECT_GE(ran, 100);
  EXPECT_GE(summed, 20);
  EXPECT_GE(masked, 20);
  EXPECT_GE(on_grid, 20);
  EXPECT_GE(ran - on_grid, 20);
}

// The keys of a row one behind the other, and all its steps but the last one full.
TEST(CudaLists, PackedHaveTheKeysOfSpans) {
  const int64_t ran = for_each_problem(
      400, at::kCPU, [](const test::Problem& problem, const SoftmaxBranch& branch) {
        if (!branch.selection.predicates.empty()) return;
        const at::Tensor fault = at::zeros({1}, at::kInt);
        const BlockAxis blocks = default_blocks(problem.call.kv_layout);
        const bool has_classes = branch.selection.classes.defined();
        const ListsOf of{
            problem.call,
            branch.selection,
            has_classes ? branch.selection.q_blocks : default_blocks(problem.call.q_layout),
            has_classes ? branch.selection.kv_blocks : blocks,
            problem.call.k.size(2),
            at::Tensor(),
            at::Tensor(),
            at::Tensor()};
        const DeviceLists spans = make_lists(of, {128, 64}, fault);
        for (const int keys : {16, 160}) {
          const DeviceLists packed = make_lists(of, {128, keys, true}, fault);
          ASSERT_TRUE(packed.tiles.equal(spans.tiles));
          const kernels::TileLists of_spans = spans.view(), of_packed = packed.view();
          for (int64_t row = 0; row < spans.counts.numel(); ++row) {
            const auto listed = [](const std::vector<kernels::KeySpan>& from) {
              std::vector<int32_t> out;
              for (const kernels::KeySpan& span : from) {
                for (uint32_t i = 0; i < span.len; ++i) {
                  out.push_back(span.begin + static_cast<int32_t>(i));
                }
              }
              return out;
            };
            const kernels::KeySpan* first = of_spans.spans + row * of_spans.capacity;
            const PackedRow own = unpacked(of_packed, row);
            ASSERT_EQ(listed(own.spans), listed({first, first + of_spans.counts[row]}))
                << problem.describe();
            for (size_t i = 0; i + 1 < own.steps.size(); ++i) {
              // Steps end early where blocks are few keys each.
              EXPECT_TRUE(own.steps[i] == keys || keys == 160) << problem.describe();
            }
          }
        }
        EXPECT_EQ(fault.item<int32_t>(), 0);
      });
  EXPECT_GE(ran, 100);
}

// Masks are there only where some pairs are seen and some are not.
TEST(CudaLists, MasksAreOfPartsOnly) {
  for_each_problem(300, at::kCPU, [](const test::Problem& problem, const SoftmaxBranch& branch) {
    const DeviceLists lists = lists_of(problem, branch);
    const kernels::TileLists view = lists.view();
    std::vector<int64_t> numbers;
    for (int64_t map = 0; map < lists.tiles.size(0); ++map) {
      for (int64_t row = map * view.rows; row < (map + 1) * view.rows; ++row) {
        for (int32_t e = 0; e < view.counts[row]; ++e) {
          const kernels::KeySpan span = view.spans[row * view.capacity + e];
          if (span.mask == 0) continue;
          EXPECT_GT(span.mask, numbers.empty() ? 0 : numbers.back());
          numbers.push_back(span.mask);
        }
      }
    }
    ASSERT_EQ(lists.masks.defined(), !numbers.empty()) << problem.describe();
    if (numbers.empty()) return;
    EXPECT_EQ(numbers[0], 1);
    EXPECT_LE(numbers.back(), lists.masks.size(0));
  });
}

// On a GPU all is as on the CPU.
TEST(CudaLists, AreTheSameOnAGpu) {
#if FOVEA_HAS_CUDA
  if (!at::hasCUDA()) GTEST_SKIP() << "missing: a GPU";
  std::vector<DeviceLists> of_cpu;
  for_each_problem(300, at::kCPU, [&](const test::Problem& problem, const SoftmaxBranch& branch) {
    for (const bool of_columns : {false, true}) {
      of_cpu.push_back(lists_of(problem, branch, of_columns));
    }
  });
  size_t next = 0;
  const auto expect_next = [&](const test::Problem& problem, const DeviceLists& got) {
    const DeviceLists& expected = of_cpu[next++];
    ASSERT_TRUE(got.tiles.cpu().equal(expected.tiles)) << problem.describe();
    const at::Tensor counts = got.counts.cpu();
    ASSERT_TRUE(counts.equal(expected.counts)) << problem.describe();
    const at::Tensor unused = at::arange(got.spans.size(2)).ge(counts.unsqueeze(2)).unsqueeze(3);
    ASSERT_TRUE(got.spans.cpu().masked_fill(unused, 0).equal(expected.spans.masked_fill(unused, 0)))
        << problem.describe();
    ASSERT_EQ(got.masks.defined(), expected.masks.defined());
    const bool same = !got.masks.defined() || got.masks.cpu().equal(expected.masks);
    ASSERT_TRUE(same) << problem.describe();
  };
  for_each_problem(300, at::kCUDA, [&](const test::Problem& problem, const SoftmaxBranch& branch) {
    expect_next(problem, lists_of(problem, branch));
    expect_next(problem, lists_of(problem, branch, true));
  });
#else
  GTEST_SKIP() << "missing: CUDA in this build";
#endif
}

TEST(GatheredRows, AreThoseOfTheOrder) {
  std::vector<at::Device> devices = {at::kCPU};
  if (at::hasCUDA()) devices.emplace_back(at::kCUDA);
  for (const at::Device device : devices) {
    at::manual_seed(1);
    const auto draw = [&](int64_t heads, int64_t len) {
      return at::randn({2, len, heads, 40}).to(device, at::kBFloat16).transpose(1, 2);
    };
    const at::Tensor q = draw(4, 99), k = draw(2, 301), v = draw(2, 301);
    at::Tensor fault = at::zeros({1}, at::device(device).dtype(at::kInt));
    const auto order = [&](int64_t items, int64_t heads, int64_t len) {
      return std::get<1>(at::rand({items, heads, len}).sort(2)).to(device, at::kInt);
    };
    const at::Tensor q_rows = order(1, 4, 99);
    at::Tensor kv_rows = order(2, 1, 301);
    kv_rows.masked_fill_(kv_rows.remainder(5).eq(0), -1);
    const auto got =
        ops::gather_rows({{q, q_rows, 4}, {k, kv_rows, 2}, {v, at::Tensor(), 4}}, fault);
    const auto expected = [](const at::Tensor& x, const at::Tensor& rows) {
      const at::Tensor at = rows.clamp_min(0).to(at::kLong).unsqueeze(3).expand(x.sizes());
      return x.gather(2, at).masked_fill(rows.lt(0).unsqueeze(3), 0);
    };
    EXPECT_TRUE(got[0].equal(expected(q, q_rows))) << device;
    EXPECT_TRUE(got[1].equal(expected(k, kv_rows))) << device;
    EXPECT_TRUE(got[2].equal(v.repeat_interleave(2, 1))) << device;
    EXPECT_EQ(fault.item<int32_t>(), 0);
    kv_rows.select(2, 7).fill_(301);
    const at::Tensor beyond = ops::gather_rows({{k, kv_rows, 2}}, fault)[0];
    EXPECT_EQ(fault.item<int32_t>(), 1);
    EXPECT_TRUE(beyond.select(2, 7).eq(0).all().item<bool>());
  }
}

TEST(DevicePools, AreMeansOfPieces) {
  std::vector<at::Device> devices = {at::kCPU};
  if (at::hasCUDA()) devices.emplace_back(at::kCUDA);
  for (const at::Device device : devices) {
    at::manual_seed(1);
    const at::Tensor x = at::randn({1, 1, 10, 300}).to(device, at::kHalf);
    const at::Tensor rows =
        at::tensor({9, 8, 7, 6, -1, 5, 4, 3, -1, -1}, at::kInt).view({1, 1, 10}).to(device);
    const at::Tensor fault = at::zeros({1}, at::device(device).dtype(at::kInt));
    const DevicePools got = pool_on_device({.tensors = {x},
                                            .rows = rows,
                                            .blocks = BlockAxis::from_host({0, 5, 8, 10}),
                                            .summaries = {{.begin = 0, .per_block = 1, .pool = 0},
                                                          {.begin = 16, .per_block = 2, .pool = 3}},
                                            .places = 22,
                                            .heads = 2},
                                           fault);
    const auto mean = [&](std::vector<int64_t> of) {
      return x.index_select(2, at::tensor(of, at::kLong).to(device)).to(at::kFloat).mean(2);
    };
    EXPECT_EQ(got.mean[0].sizes(), (std::vector<int64_t>{1, 2, 22, 300}));
    const auto expect = [&](int64_t place, std::vector<int64_t> of) {
      const auto count = static_cast<float>(of.size());
      EXPECT_TRUE(got.count.select(2, place).eq(count).all().item<bool>()) << device << place;
      const at::Tensor own = got.mean[0].select(2, place);
      const at::Tensor exact = of.empty() ? at::zeros_like(own) : mean(of).expand_as(own);
      EXPECT_TRUE(own.allclose(exact, 1e-5, 1e-5)) << device << place;
    };
    expect(0, {9, 8, 7, 6});
    expect(1, {5, 4, 3});
    expect(2, {});
    expect(3, {});  // between the two
    expect(16, {9, 8, 7});
    expect(17, {6});
    expect(18, {5, 4, 3});
    expect(19, {});
    expect(20, {});
    expect(21, {});
    EXPECT_EQ(fault.item<int32_t>(), 0);
  }
}

}  // namespace
}  // namespace fovea
