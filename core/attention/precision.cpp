#include "core/attention/precision.h"

#include <array>
#include <utility>

#include <ATen/ATen.h>

#include "core/check.h"

namespace fovea {
namespace {

constexpr double kLargestInt8 = 127, kLargestE4m3 = 448;

// The nearest e4m3 numbers, halves to the even fraction; x up to 448.
at::Tensor nearest_e4m3(const at::Tensor& x) {
  // x = m · 2^e with m from 1/2 on: e4m3 numbers around x are 2^e / 16 apart, below 2^-6 always
  // 2^-9. The division is exact.
  const at::Tensor power = (x / std::get<0>(at::frexp(x))).nan_to_num(0);
  const at::Tensor step = (power / 16).clamp_min(1.0 / 512);
  return at::round(x / step) * step;
}

const char* unit_name(ScaleUnit unit) {
  switch (unit) {
    case ScaleUnit::head:
      return "head";
    case ScaleUnit::block:
      return "block";
    case ScaleUnit::token:
      return "token";
    case ScaleUnit::channel:
      return "channel";
  }
  return "?";
}

}  // namespace

bool Precision::is_storage() const {
  constexpr NumberFormat kStorage = NumberFormat::storage;
  return q.format == kStorage && k.format == kStorage && v.format == kStorage &&
         p.format == kStorage;
}

std::string Precision::describe() const {
  std::string out;
  const std::array<std::pair<const char*, const Quantized*>, 4> operands = {
      {{"q", &q}, {"k", &k}, {"v", &v}, {"p", &p}}};
  for (const auto& [name, operand] : operands) {
    if (operand->format == NumberFormat::storage) continue;
    out += str(out.empty() ? "" : ", ", name,
               operand->format == NumberFormat::int8 ? " int8" : " e4m3", " per ",
               unit_name(operand->unit));
    if (operand->group > 0) out += str(" of ", operand->group);
  }
  if (smooth_k && !out.empty()) out += ", smooth k";
  return out;
}

at::Tensor quantize(const at::Tensor& x, NumberFormat format, const at::Tensor& amax) {
  if (format == NumberFormat::storage) return x;
  const bool is_int8 = format == NumberFormat::int8;
  const double largest = is_int8 ? kLargestInt8 : kLargestE4m3;
  const at::Tensor exact = x.detach();
  // By a tensor: GPUs multiply with the reciprocal of a number, and a scale that is off in its last
  // bit puts half of all ties elsewhere.
  const at::Tensor scale =
      (amax.detach() / at::full({}, largest, amax.options())).masked_fill(amax.eq(0), 1);
  const at::Tensor units = exact / scale;
  const at::Tensor rounded =
      (is_int8 ? at::round(units) : nearest_e4m3(units)).clamp(-largest, largest);
  const at::Tensor value = rounded * scale;
  // x - x.detach() is 0 and carries the gradient, so that the value stays exact.
  return x.requires_grad() ? value + (x - exact) : value;
}

}  // namespace fovea
