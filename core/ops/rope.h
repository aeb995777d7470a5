#pragma once

#include <ATen/core/Tensor.h>

namespace fovea {

/// Rotary position embedding on interleaved pairs: values 2i and 2i + 1 of each head turn by the
/// angle of (position, i). Computed in fp32 without fused multiply-adds and rounded once, as the
/// attention processor of diffusers' WanTransformer3DModel does. Kernel or composition as for
/// `rms_norm`.
///
/// x         [batch, seq_len, num_heads, head_dim], fp32 / fp16 / bf16 / fp64, head_dim even
/// cos, sin  [seq_len, head_dim / 2], fp32 (fp64 beside an fp64 x)
/// returns   shape and dtype of x
/// throws    Error bad_data when a shape, dtype or device does not fit
/// paper     Su et al., RoFormer, arXiv 2104.09864, equation 34
at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

/// As `rope`, into the memory of x; not when a gradient is asked for.
void rope_(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

/// `rms_norm` over all heads together, rounded to the dtype of x, then `rope`, in one pass: the
/// path of queries and keys in the self-attention of Wan.
///
/// x         [batch, seq_len, num_heads * head_dim], fp32 / fp16 / bf16 / fp64
/// weight    [num_heads * head_dim], any floating dtype; undefined means ones
/// cos, sin  [seq_len, head_dim / 2], fp32 (fp64 beside an fp64 x)
/// returns   [batch, seq_len, num_heads, head_dim], dtype of x
/// throws    Error bad_data when a shape, dtype or device does not fit
at::Tensor rms_norm_rope(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& cos,
                         const at::Tensor& sin, double eps);

/// The same in plain tensor operations; see core/ops/norm.h.
namespace composition {
at::Tensor rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
at::Tensor rms_norm_rope(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& cos,
                         const at::Tensor& sin, double eps);
}  // namespace composition

}  // namespace fovea
