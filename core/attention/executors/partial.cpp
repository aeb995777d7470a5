#include "core/attention/executors/partial.h"

#include <limits>

#include <ATen/ATen.h>

#include "core/ops/product.h"

namespace fovea {

Partial merge(const Partial& a, const Partial& b) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  at::Tensor top = at::maximum(a.lse, b.lse).detach();
  top = top.masked_fill(top.eq(-kInfinity), 0);
  const at::Tensor wa = ops::exp(a.lse - top), wb = ops::exp(b.lse - top);
  const at::Tensor sum = wa + wb;
  const at::Tensor empty = sum.eq(0);
  const at::Tensor safe = sum.masked_fill(empty, 1);
  return {(a.out * wa.unsqueeze(3) + b.out * wb.unsqueeze(3)) / safe.unsqueeze(3),
          (ops::log(safe) + top).masked_fill(empty, -kInfinity)};
}

AttentionResult combine(const AttentionPlan& plan, const std::vector<Partial>& branches,
                        at::ScalarType dtype) {
  std::vector<Partial> groups(plan.num_groups());
  for (size_t i = 0; i < branches.size(); ++i) {
    Partial& group = groups[plan.branches[i].group];
    group = group.out.defined() ? merge(group, branches[i]) : branches[i];
  }
  at::Tensor out;
  for (size_t i = 0; i < groups.size(); ++i) {
    at::Tensor part = groups[i].out;
    if (i < plan.group_weights.size() && plan.group_weights[i].defined()) {
      part = part * ops::spread(plan.group_weights[i].to(part.scalar_type()), part.sizes());
    }
    out = out.defined() ? out + part : part;
  }
  return {out.to(dtype), groups[0].lse};
}

}  // namespace fovea
