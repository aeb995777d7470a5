// One process of a group, for process_group_test: ROLE [SILENCE_SECONDS [JOIN_SECONDS]]. Prints
// what it got, and ends as the program does: the error line and its code.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <limits>
#include <string>
#include <thread>

#include <ATen/ATen.h>

#include "core/check.h"
#include "core/guard.h"
#include "core/process_group.h"

namespace {

using fovea::ProcessGroup;

void print(const char* what, const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kDouble).reshape({-1}).contiguous();
  std::cout << what;
  for (int64_t i = 0; i < values.numel(); ++i) std::cout << ' ' << values.data_ptr<double>()[i];
  std::cout << std::endl;
}

void exchange(ProcessGroup& group) {
  const int rank = group.rank();
  at::Tensor mean = at::arange(6, at::kFloat).view({2, 3}) * (rank + 1);
  mean.requires_grad_(true);
  group.all_reduce_mean(mean);
  print("mean", mean);
  at::Tensor precise = at::full({}, 1 + rank * 0x1p-40, at::kDouble);
  group.all_reduce_mean(precise);
  print("precise", (precise - 1) * 0x1p40);

  at::Tensor whole = at::arange(3, at::kLong) + 10 * rank;
  group.broadcast(whole, 1);
  print("broadcast", whole);
  at::Tensor half = at::full({}, 0.5 * rank, at::kBFloat16);
  group.broadcast(half, 0);
  print("scalar", half);
  at::Tensor nothing = at::empty({0});
  group.broadcast(nothing, 0);

  double values[] = {rank == 0 ? 3.0 : -1.0, rank == 1 ? 4.0 : -2.0,
                     rank == 0 ? std::numeric_limits<double>::quiet_NaN() : 0.0};
  group.agree_max(values);
  std::cout << "max " << values[0] << ' ' << values[1] << ' ' << values[2] << std::endl;
  group.barrier();
  group.require_equal("the seed", "seed 5");
  group.wait_device();
}

[[noreturn]] void repeat(ProcessGroup& group, const std::string& role) {
  at::Tensor tensor = at::ones({1 << 16});
  double value = 0;
  for (int i = 0;; ++i) {
    if (role == "reduce") {
      group.all_reduce_mean(tensor);
    } else {
      group.agree_max({&value, 1});
    }
    if (i == 3) std::cout << "ready" << std::endl;
    if (role == "fail" && i == 3 && group.rank() == 1) {
      throw fovea::Error(fovea::ErrorCode::non_finite, "loss", "of its own");
    }
  }
}

void run(const std::string& role, const fovea::ProcessGroupOptions& options) {
  const auto group = ProcessGroup::make(fovea::read_process_place(), at::kCPU, options);
  if (role == "exchange") return exchange(*group);
  if (role == "differ") return group->require_equal("the seed", fovea::str(group->rank()));
  if (role == "busy") {
    if (group->rank() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(3500));
    return group->barrier();
  }
  repeat(*group, role);
}

}  // namespace

int main(int argc, char** argv) {
  int code = 0;
  try {
    try {
      fovea::ProcessGroupOptions options;
      if (argc > 2) options.silence_seconds = std::stod(argv[2]);
      if (argc > 3) options.join_seconds = std::stod(argv[3]);
      run(argv[1], options);
    } catch (...) {
      fovea::rethrow_as_error("child");
    }
  } catch (const fovea::Error& error) {
    std::cout << "error: " << error.what() << std::endl;
    code = error.exit_code();
  }
  if (fovea::process_group_abandoned()) std::_Exit(code);
  return code;
}
