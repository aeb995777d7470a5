#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

#include "core/attention/plan.h"

namespace fovea::test {

/// Random numbers by counting (splitmix64): the same on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull) {}

  uint64_t next();
  int64_t below(int64_t bound) { return static_cast<int64_t>(next() % uint64_t(bound)); }
  bool one_in(int64_t count) { return below(count) == 0; }
  template <typename T>
  const T& of(const std::vector<T>& values) {
    return values[static_cast<size_t>(below(static_cast<int64_t>(values.size())))];
  }
  at::Tensor normal(at::IntArrayRef sizes);                              ///< fp32
  at::Tensor uniform(at::IntArrayRef sizes);                             ///< fp32, 0 to 1
  at::Tensor permutation(int64_t items, int64_t heads, int64_t length);  ///< int32

 private:
  uint64_t state_;
};

/// A call and a plan for it: any branch kinds, lengths, heads, types, strides, orders, blocks,
/// padding that the contract lists, as far as they are small.
struct Problem {
  int64_t number = 0;
  std::string kind;  ///< of the plan's first branches, such as "summaries"
  AttentionPlan plan;
  AttentionCall call;

  /// For a message: number, kind, plan, shapes.
  std::string describe() const;
};

/// Problem `number` of a type on a device: always the same one.
Problem make_problem(int64_t number, at::ScalarType dtype, at::Device device);

/// One softmax over blocks or by predicates, without biases, whose queries and keys are all zero;
/// for the retrieval probe, which sets them.
Problem make_retrieval(int64_t number, at::ScalarType dtype, at::Device device);

/// Large enough for the gain of a kernel to show: 32,896 numbers and more.
Problem make_gain(int64_t number, at::ScalarType dtype, at::Device device);

}  // namespace fovea::test
