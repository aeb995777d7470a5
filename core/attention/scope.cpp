#include "core/attention/scope.h"

#include <limits>

#include <ATen/ATen.h>
#include <ATen/core/stack.h>
#include <ATen/ops/scaled_dot_product_attention_native.h>
#include <torch/library.h>

namespace fovea {
namespace {

thread_local AttentionScope* current = nullptr;

// Executors may call LibTorch's attention themselves.
class Suspended {
 public:
  Suspended() : scope_(current) { current = nullptr; }
  ~Suspended() { current = scope_; }
  Suspended(const Suspended&) = delete;
  Suspended& operator=(const Suspended&) = delete;

 private:
  AttentionScope* scope_;
};

// LibTorch's mask, true or a number to add, as a bias [.., .., q_len, kv_len].
at::Tensor bias_of(const at::Tensor& mask, const at::Tensor& q) {
  at::Tensor bias = mask;
  if (mask.scalar_type() == at::kBool) {
    bias = at::zeros(mask.sizes(), q.options().dtype(at::kFloat))
               .masked_fill(mask.logical_not(), -std::numeric_limits<double>::infinity());
  }
  while (bias.dim() < 4) bias = bias.unsqueeze(0);
  return bias;
}

}  // namespace

AttentionScope::AttentionScope(const ScopeOptions& options)
    : options_(options), attention_(options.planner, options.planner_options), outer_(current) {
  current = this;
}

AttentionScope::~AttentionScope() { current = outer_; }

void AttentionScope::next_step() {
  ++context_.step;
  layer_ = 0;
}

std::map<std::string, int64_t> AttentionScope::counts() const {
  std::map<std::string, int64_t> out = attention_.counts();
  if (left_alone_ > 0) out["left alone"] = left_alone_;
  return out;
}

// A call of at::scaled_dot_product_attention, its arguments in the order of the schema.
struct ScopedSdpa {
  at::Tensor query, key, value;
  std::optional<at::Tensor> mask;
  double dropout;
  bool is_causal;
  std::optional<double> scale;
  bool enable_gqa;

  explicit ScopedSdpa(const c10::IValue* arguments)
      : query(arguments[0].toTensor()),
        key(arguments[1].toTensor()),
        value(arguments[2].toTensor()),
        mask(arguments[3].toOptional<at::Tensor>()),
        dropout(arguments[4].toDouble()),
        is_causal(arguments[5].toBool()),
        scale(arguments[6].toOptional<double>()),
        enable_gqa(arguments[7].toBool()) {}

  bool is_planned() const {
    return query.dim() == 4 && key.dim() == 4 && value.dim() == 4 && dropout == 0 &&
           query.size(0) == key.size(0) && query.size(2) == key.size(2) &&
           query.size(3) == key.size(3) && key.size(2) > 0 && query.size(3) > 0 &&
           key.sizes().slice(0, 3) == value.sizes().slice(0, 3) &&
           (enable_gqa ? query.size(1) % key.size(1) == 0 : query.size(1) == key.size(1));
  }

  at::Tensor as_without_scope() const {
    return at::native::scaled_dot_product_attention(query, key, value, mask, dropout, is_causal,
                                                    scale, enable_gqa);
  }

  at::Tensor planned(AttentionScope& scope) const {
    const Suspended suspended;
    const bool is_known =
        scope.options_.layout && scope.options_.layout->seq_len() == query.size(2);
    AttentionCall call{.q = query,
                       .k = key,
                       .v = value,
                       .sm_scale = scale,
                       .context = scope.context_,
                       .layer = scope.layer_++};
    call.q_layout = call.kv_layout =
        is_known ? *scope.options_.layout : TokenLayout::sequence(query.size(2));
    if (mask && mask->defined()) call.bias = bias_of(*mask, query);
    if (is_causal) {
      const at::Tensor seen =
          at::ones({query.size(2), key.size(2)}, query.options().dtype(at::kBool)).tril();
      const at::Tensor causal = bias_of(seen, query);
      call.bias = call.bias.defined() ? call.bias + causal : causal;
    }
    return scope.attention_.run(call);
  }

  at::Tensor run() const {
    if (current != nullptr && is_planned()) return planned(*current);
    if (current != nullptr) ++current->left_alone_;
    return as_without_scope();
  }

  static void boxed(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const size_t count = op.schema().arguments().size();
    const at::Tensor out = ScopedSdpa(stack->data() + stack->size() - count).run();
    torch::jit::drop(*stack, count);
    stack->emplace_back(out);
  }
};

#define FOVEA_SCOPED(key)                                                    \
  TORCH_LIBRARY_IMPL(aten, key, m) {                                         \
    m.impl("scaled_dot_product_attention",                                   \
           torch::CppFunction::makeFromBoxedFunction<&ScopedSdpa::boxed>()); \
  }

// LibTorch's own is made of other operators for all of these keys; it runs where no scope is.
FOVEA_SCOPED(CPU)
FOVEA_SCOPED(AutogradCPU)
FOVEA_SCOPED(CUDA)
FOVEA_SCOPED(AutogradCUDA)

}  // namespace fovea
