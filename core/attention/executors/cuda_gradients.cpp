#include "core/attention/executors/cuda_gradients.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/attention/executors/cuda_views.h"
#include "core/check.h"
#include "core/ops/gather_rows.h"

namespace fovea {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr size_t kInputs = 5;  // q, k, v, and more of the latter two or undefined

bool has_gradient(const at::Tensor& x) { return x.defined() && x.requires_grad(); }

// The launch without the tensors that LibTorch saves.
struct SavedLaunch : torch::CustomClassHolder {
  explicit SavedLaunch(SoftmaxLaunch of) : launch(std::move(of)) {}
  SoftmaxLaunch launch;
};

// Memory [batch, heads, len, dim], tokens before heads, as projections want it.
at::Tensor memory_like(const at::Tensor& x, bool is_zero) {
  const std::vector<int64_t> sizes = {x.size(0), x.size(2), x.size(1), x.size(3)};
  return (is_zero ? at::zeros(sizes, x.options()) : at::empty(sizes, x.options())).transpose(1, 2);
}

// Results and their gradients by position. Rows of out may be in another order.
struct Outer {
  at::Tensor out, grad_out;  // [batch, heads, q_len, dim]
  at::Tensor lse, grad_lse;  // fp32 [batch, heads, q_len], contiguous; the latter or undefined

  Outer(const SoftmaxLaunch& launch, const Partial& result, const variable_list& gradients)
      : out(result.out), grad_out(gradients[0]), lse(result.lse), grad_lse(gradients[1]) {
    if (!grad_out.defined()) grad_out = at::zeros_like(out);
    const at::Tensor& rows = launch.out_rows;
    if (rows.defined()) {
      const int64_t heads = out.size(1);
      const auto both =
          ops::gather_rows({{out, rows, heads}, {grad_out, rows, heads}}, launch.fault);
      out = both[0], grad_out = both[1];
      const at::Tensor own = rows.to(at::kLong).expand_as(lse);
      lse = lse.gather(2, own);
      if (grad_lse.defined()) grad_lse = grad_lse.gather(2, own);
    }
    grad_out = ops::with_aligned_rows(grad_out);
    lse = lse.contiguous();
    if (grad_lse.defined()) grad_lse = grad_lse.contiguous();
  }
};

class Softmax : public torch::autograd::Function<Softmax> {
 public:
  // The kernel has run before.
  static variable_list forward(AutogradContext* context, at::TensorList inputs,
                               const SoftmaxLaunch& launch, const Partial& result) {
    auto saved = c10::make_intrusive<SavedLaunch>(launch);
    for (at::Tensor SoftmaxLaunch::*x : {&SoftmaxLaunch::q, &SoftmaxLaunch::k, &SoftmaxLaunch::v,
                                         &SoftmaxLaunch::more_k, &SoftmaxLaunch::more_v}) {
      (saved->launch.*x).reset();
    }
    variable_list tensors(inputs.begin(), inputs.end());
    tensors.resize(kInputs);
    tensors.insert(tensors.end(), {result.out, result.lse});
    context->save_for_backward(tensors);
    context->saved_data["launch"] = at::IValue::make_capsule(std::move(saved));
    context->set_materialize_grads(false);
    return {result.out, result.lse};
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    SoftmaxLaunch launch =
        c10::static_intrusive_pointer_cast<SavedLaunch>(context->saved_data["launch"].toCapsule())
            ->launch;
    require(!c10::GradMode::is_enabled(), ErrorCode::usage, "attention", "the ",
            launch.backend.name, " executor has no second derivatives");
    const variable_list saved = context->get_saved_variables();
    launch.q = saved[0], launch.k = saved[1], launch.v = saved[2];
    launch.more_k = saved[3], launch.more_v = saved[4];
    const size_t count = launch.more_k.defined() ? kInputs : kInputs - 2;
    const auto needs = [&](size_t input) {
      return input < count && context->needs_input_grad(input);
    };
    const Outer outer(launch, {saved[kInputs], saved[kInputs + 1]}, gradients);
    variable_list out(kInputs);
    if (needs(0)) out[0] = memory_like(launch.q, false);
    const bool wants_keys = needs(1) || needs(2) || needs(3) || needs(4);
    // Keys that are in no tile keep what they hold.
    for (size_t i = 1; wants_keys && i < count; ++i) {
      out[i] = memory_like(saved[i], launch.lists.has_value());
    }
    if (needs(0) || wants_keys) run(launch, outer, out);
    out.resize(count + 2);  // the launch's and the result's
    for (size_t i = 1; i < count; ++i) {
      if (!needs(i)) out[i].reset();
    }
    return out;
  }

 private:
  static void run(const SoftmaxLaunch& launch, const Outer& outer, const variable_list& out) {
    kernels::CudaAttentionBackwardArgs args;
    kernels::CudaAttentionArgs& f = args.forward;
    f = launch.args;
    // Tensors that LibTorch gives back may lie elsewhere than those that it was given.
    f.q = view_of(launch.q), f.k = view_of(launch.k), f.v = view_of(launch.v);
    if (launch.more_k.defined()) {
      f.more.k = view_of(launch.more_k), f.more.v = view_of(launch.more_v);
    }
    f.out = written_view_of(outer.out), f.lse = outer.lse.mutable_data_ptr<float>();
    f.out_order = {}, f.next_tile = nullptr;
    args.grad_out = view_of(outer.grad_out);
    if (outer.grad_lse.defined()) args.grad_lse = outer.grad_lse.const_data_ptr<float>();
    kernels::MutableHeadRows* const places[] = {&args.grad_q, &args.grad_k, &args.grad_v,
                                                &args.grad_more_k, &args.grad_more_v};
    for (size_t i = 0; i < kInputs; ++i) {
      if (out[i].defined()) *places[i] = written_view_of(out[i]);
    }
    if (launch.columns) {
      args.columns = launch.columns->view();
      args.column_tile = launch.columns->tile;
      args.columns_on_grid = launch.columns->on_grid;
    }
    const at::Tensor workspace = at::empty({launch.backend.backward.workspace_bytes(args)},
                                           launch.q.options().dtype(at::kByte));
    args.workspace = static_cast<float*>(workspace.mutable_data_ptr());
    const kernels::CudaTarget target =
        launch.q.is_cuda() ? ops::cuda_target(launch.q.device()) : kernels::CudaTarget{};
    const kernels::Status status = launch.backend.backward.run(args, target);
    require(ops::accepted(launch.backend.name, status), ErrorCode::device, launch.backend.name,
            status.message);
  }
};

}  // namespace

bool wants_gradient(const SoftmaxBranch& branch, const AttentionCall& call) {
  if (!c10::GradMode::is_enabled()) return false;
  if (has_gradient(call.q)) return true;
  return branch.keys ? has_gradient(branch.keys->k) || has_gradient(branch.keys->v)
                     : has_gradient(call.k) || has_gradient(call.v);
}

std::optional<std::string> why_not_gradients(const CudaBackend& backend, const AttentionPlan& plan,
                                             const AttentionCall& call) {
  if (!c10::GradMode::is_enabled()) return std::nullopt;
  if (has_gradient(call.bias)) return "gives no gradients of biases";
  for (const Branch& branch : plan.branches) {
    const auto* softmax = std::get_if<SoftmaxBranch>(&branch.kind);
    if (softmax == nullptr) continue;
    if (softmax->keys && has_gradient(softmax->keys->bias)) return "gives no gradients of biases";
    if (!wants_gradient(*softmax, call)) continue;
    if (const auto reason = backend.backward.why_not(call)) return reason;
  }
  return std::nullopt;
}

Partial with_gradients(const SoftmaxLaunch& launch, const Partial& result) {
  std::vector<at::Tensor> inputs = {launch.q, launch.k, launch.v};
  if (launch.more_k.defined()) inputs.insert(inputs.end(), {launch.more_k, launch.more_v});
  const variable_list out = Softmax::apply(at::TensorList(inputs), launch, result);
  return {out[0], out[1]};
}

}  // namespace fovea
