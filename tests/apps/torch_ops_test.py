"""Loads libfovea_torch.so into Python and holds its operators against torch's own."""

import sys

import torch
import torch.nn.functional as F


def tables(seq_len, head_dim):
    angle = torch.randn(seq_len, head_dim // 2)
    return angle.cos(), angle.sin()


def cases(dtype, grad=False):
    """(operator, arguments) with small inputs."""
    ops = torch.ops.fovea
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def t(*shape, d=dtype):
        return torch.randn(*shape, dtype=d).requires_grad_(grad)

    cos, sin = tables(5, 6)
    cos, sin = cos.to(wide), sin.to(wide)
    return [
        (ops.rms_norm, (t(2, 5, 12), t(12), 1e-6)),
        (ops.rms_norm, (t(2, 12),)),
        (ops.layer_norm, (t(2, 5, 12), t(12, d=wide), t(12, d=wide), 1e-5)),
        (ops.rope, (t(2, 5, 3, 6), cos, sin)),
        (ops.rms_norm_rope, (t(2, 5, 12), t(12), cos, sin, 1e-6)),
        (ops.layer_norm_modulate, (t(2, 5, 12), t(2, 12, d=wide), t(1, 12, d=wide), 1e-6)),
        (ops.gate_residual, (t(2, 5, 12), t(2, 5, 12), t(2, 12, d=wide))),
    ]


def check_against_torch():
    x, w, b = torch.randn(4, 100), torch.randn(100), torch.randn(100)
    torch.testing.assert_close(torch.ops.fovea.rms_norm(x, w, 1e-6), F.rms_norm(x, (100,), w, 1e-6))
    torch.testing.assert_close(
        torch.ops.fovea.layer_norm(x, w, b, 1e-6), F.layer_norm(x, (100,), w, b, 1e-6))
    # Rounded once, as torch.nn.RMSNorm rounds, which rounding twice would not equal.
    x, w = torch.randn(64, 1536, dtype=torch.bfloat16), torch.randn(1536, dtype=torch.bfloat16)
    ours, theirs = torch.ops.fovea.rms_norm(x, w, 1e-6), F.rms_norm(x, (1536,), w, 1e-6)
    assert (ours != theirs).float().mean() < 1e-4, "rms_norm rounds differently"


def wan_rotary(x, freqs_cos, freqs_sin):
    """Interleaved rotary embedding as the Wan processor computes it, with repeated tables."""
    x1, x2 = x.unflatten(-1, (-1, 2)).unbind(-1)
    out = torch.empty_like(x)
    out[..., 0::2] = x1 * freqs_cos[..., 0::2] - x2 * freqs_sin[..., 1::2]
    out[..., 1::2] = x1 * freqs_sin[..., 1::2] + x2 * freqs_cos[..., 0::2]
    return out.type_as(x)


def check_wan_block_expressions():
    """The expressions of diffusers' WanTransformerBlock and WanAttnProcessor."""
    from diffusers.models.normalization import FP32LayerNorm
    from diffusers.models.transformers.transformer_wan import WanRotaryPosEmbed

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(2, 24, 2 * 44, dtype=dtype)
        y = torch.randn_like(x)
        scale, shift, gate = torch.randn(2, 3, 88).chunk(3, dim=1)
        norm = FP32LayerNorm(88, 1e-6, elementwise_affine=False)
        expected = (norm(x.float()) * (1 + scale) + shift).type_as(x)
        got = torch.ops.fovea.layer_norm_modulate(x, scale.squeeze(1), shift.squeeze(1), 1e-6)
        torch.testing.assert_close(got, expected)
        got = torch.ops.fovea.gate_residual(x, y, gate.squeeze(1))
        assert torch.equal(got, (x.float() + y * gate).type_as(x)), dtype

        freqs_cos, freqs_sin = WanRotaryPosEmbed(44, (1, 2, 2), 1024)(torch.empty(1, 16, 2, 6, 8))
        cos = freqs_cos[0, :, 0, 0::2].contiguous()
        sin = freqs_sin[0, :, 0, 1::2].contiguous()
        weight = torch.randn(88, dtype=dtype)
        normed = torch.nn.functional.rms_norm(x, (88,), weight, 1e-6)
        heads = normed.unflatten(2, (2, 44))
        expected = wan_rotary(heads, freqs_cos, freqs_sin)
        assert torch.equal(torch.ops.fovea.rope(heads, cos, sin), expected)
        fused = torch.ops.fovea.rms_norm_rope(x, weight, cos, sin, 1e-6)
        torch.testing.assert_close(fused, expected)


def main():
    torch.manual_seed(0)
    torch.ops.load_library(sys.argv[1])
    check_against_torch()
    check_wan_block_expressions()
    for dtype in (torch.float32, torch.bfloat16):
        for op, args in cases(dtype):
            got = op(*args)
            meta = op(*(a.to("meta") if torch.is_tensor(a) else a for a in args))
            assert meta.shape == got.shape and meta.dtype == got.dtype, op
            assert meta.stride() == got.stride(), op
    for op, args in cases(torch.float32, grad=True):
        torch.library.opcheck(op.default, args, test_utils=("test_schema", "test_faketensor"))
    for op, args in cases(torch.float64, grad=True):
        assert torch.autograd.gradcheck(op, args), op
    try:
        torch.ops.fovea.rms_norm(torch.randn(2, 8), torch.randn(7))
    except RuntimeError as error:
        assert "'weight': expected shape [8], got [7]" in str(error), error
    else:
        raise AssertionError("a weight of the wrong shape was accepted")
    print("ok")


if __name__ == "__main__":
    main()
