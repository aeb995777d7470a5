"""Loads libfovea_torch.so into Python: attention operators on input that is wrong or awkward."""

import math
import sys

import torch

EXECUTORS = ("auto", "checked", "reference")


def draw(heads=4, tokens=12, dim=8):
    torch.manual_seed(3)
    return [torch.randn(2, h, tokens, dim) for h in (heads, heads // 2, heads // 2)]


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def refused(part, call):
    try:
        call()
    except RuntimeError as error:
        # Not an error of ours (code 1), and not LibTorch's own words.
        assert str(error)[:3] in ("2: ", "3: ", "6: ") and part in str(error), f"{part}: {error}"
    else:
        raise AssertionError(f"{part}: accepted")


def equal(got, expected, bound=2e-6):
    for a, b in zip(got, expected):
        assert a.shape == b.shape, (a.shape, b.shape)
        assert torch.equal(a.isneginf(), b.isneginf())
        a, b = (x.masked_fill(x.isneginf(), 0) for x in (a, b))
        assert (a - b).norm() <= bound * b.norm().clamp_min(1e-30), (a - b).norm() / b.norm()


def check_indices():
    """Orders and offsets that name what is not there."""
    q, k, v = draw()
    all_rows = list(range(12))
    for ex in EXECUTORS:
        attend = lambda *args, **named: torch.ops.fovea.attention(q, k, v, *args, executor=ex,
                                                                  **named)
        for rows in (all_rows[1:] + [12], [-1] + all_rows[1:], [0, 0] + all_rows[2:],
                     all_rows[:-1] + [2**31 - 1]):
            refused("query order is no permutation", lambda: attend(q_order=ints(*rows)))
            refused("key order is no permutation", lambda: attend(kv_order=ints(*rows)))
        far = torch.tensor(all_rows) + 2**32
        refused("query order is no permutation", lambda: attend(q_order=far))
        refused("an index of 11 tokens", lambda: attend(q_order=ints(*all_rows[1:])))
        refused("expected int32 or int64", lambda: attend(q_order=ints(*all_rows).float()))
        refused("tensor 'q_order'", lambda: attend(q_order=ints(*all_rows)[None]))
        refused("for 2 items and 4 heads",
                lambda: attend(q_order=ints(*all_rows).expand(1, 3, 12)))
        mask = torch.ones(1, 1, 1, 2, dtype=torch.bool)
        blocks = lambda offsets, n=2: attend(mask[..., :n], q_offsets=ints(0, 12),
                                             kv_offsets=offsets)
        for wrong in ((0, 13, 12), (1, 3, 12), (0, 3, 11), (0, 3, 13), (0, -1, 12)):
            refused("key offsets do not ascend from 0 to 12", lambda: blocks(ints(*wrong)))
        refused("do not ascend", lambda: blocks(torch.tensor([0, 2**32 + 3, 12])))
        refused("do not ascend", lambda: blocks(ints(0), 0))
        refused("offsets", lambda: blocks(ints(), 0))
        refused("offsets", lambda: blocks(ints(0, 3, 12).float()))
        for block in ([0, 4], [4, -1]):
            refused("blocks of", lambda: attend(torch.ones(1, 1, 3, 3).bool(), block))
        equal(attend(torch.ones(1, 1, 1, 1).bool(), [2**62, 2**62]), attend())


def check_masks():
    q, k, v = draw()
    whole = torch.ops.fovea.attention(q, k, v)
    for ex in EXECUTORS:
        attend = lambda mask: torch.ops.fovea.attention(q, k, v, mask, [4, 4], executor=ex)
        for shape in ((1, 3, 3, 3), (3, 1, 3, 3), (1, 1, 3, 4), (3, 3), (1, 1, 1, 3, 3)):
            refused("expected a class map", lambda: attend(torch.ones(shape).bool()))
        refused("expected bool or uint8", lambda: attend(torch.ones(1, 1, 3, 3)))
        refused("class 255 of a block", lambda: attend(torch.full((1, 1, 3, 3), 255).byte()))
        some = torch.tensor([1, 0, 1]).bool()[None, None, :, None].expand(1, 1, 3, 3)
        out, lse = attend(some)
        assert out[:, :, 4:8].abs().max() == 0 and lse[:, :, 4:8].isneginf().all()
        equal([out[:, :, 8:], lse[:, :, 8:]], [x[:, :, 8:] for x in whole])
        out, lse = attend(torch.zeros(1, 1, 3, 3).bool())
        assert out.abs().max() == 0 and lse.isneginf().all()


def check_shapes():
    q, k, v = draw()
    for ex in EXECUTORS:
        attend = lambda *x, **named: torch.ops.fovea.attention(*x, executor=ex, **named)
        heads = "heads that divide those of q"
        for part, x in (
            (heads, (q[:, :3], k, v)), (heads, (q[:, :1], k, v)), (heads, (q, k[:, :0], v[:, :0])),
            ("tensor 'v'", (q, k, v[:, :1])), ("batch and head_dim", (q, k[:1], v[:1])),
            ("tensor 'q': expected at least one channel", (q[..., :0], k[..., :0], v)),
            ("tensor 'v': expected at least one channel", (q, k, v[..., :0])),
            ("expected q, k and v", (q[0], k[0], v[0])),
            ("tensor 'q'", (q.int(), k.int(), v.int())),
            ("tensor 'k'", (q, k.half(), v)), ("on one device", (q, k.to("meta"), v)),
        ):
            refused(part, lambda: attend(*x))
        refused("tensor 'bias'", lambda: attend(q, k, v, bias=torch.zeros(13, 12)))
        refused("expected int64 [2]", lambda: attend(q, k, v, kv_len=torch.tensor([12])))
        equal(attend(q, k, v, kv_len=torch.tensor([99, -1])),
              attend(q, k, v, kv_len=torch.tensor([12, 0])))
        assert attend(q[:0], k[:0], v[:0])[0].shape == (0, 4, 12, 8)
        assert attend(q[:, :, :0], k, v)[1].shape == (2, 4, 0)
        out, lse = attend(q, k[:, :, :0], v[:, :, :0])
        assert out.abs().max() == 0 and lse.isneginf().all()


def check_special_values():
    q, k, v = draw(tokens=40)
    for ex in EXECUTORS:
        clean = torch.ops.fovea.attention(q, k, v, executor=ex)
        bad = q.clone()
        bad[1, 2, 17, 3] = math.nan
        got = torch.ops.fovea.attention(bad, k, v, executor=ex)
        for x, y in zip(got, clean):
            assert x[1, 2, 17].isnan().all() and not y.isnan().any()
            x[1, 2, 17] = y[1, 2, 17]
        equal(got, clean)


def check_strides():
    x = draw()
    views = [lambda t: t.flip(2), lambda t: t.mT.contiguous().mT]
    for axis in range(4):
        views.append(lambda t, a=axis: t.narrow(a, 0, 1).expand(t.shape))
        views.append(lambda t, a=axis: torch.cat([t, t], a).unfold(a, 1, 2)[..., 0])
    for ex in EXECUTORS:
        for view in views:
            seen = [view(t) for t in x]
            equal(torch.ops.fovea.attention(*seen, executor=ex),
                  torch.ops.fovea.attention(*(t.contiguous() for t in seen), executor=ex))


def check_layouts():
    q, k, v = draw()
    for ex in EXECUTORS:
        planned = lambda grid, text=0, planner="topk", options="": \
            torch.ops.fovea.planned_attention(q, k, v, [], planner, grid, text, False, options,
                                              executor=ex)
        refused("its layout, grid 1x3x5", lambda: planned([1, 3, 5]))
        refused("its layout, grid 1x3x4 + text 1", lambda: planned([1, 3, 4], 1))
        refused("at least 1", lambda: planned([0, 3, 4]))
        refused("at least 1", lambda: planned([-1, -3, 4]))
        refused("negative", lambda: planned([1, 4, 4], -4))
        for large in ([2**32, 2**32, 12], [2**62 + 3, 4, 1]):  # 0 and 12 tokens in 64 bits
            refused("too many tokens", lambda: planned(large))
        refused("too many tokens", lambda: planned([1, 3, 4], 2**63 - 1))
        window = "tile=1,2,2,window=1,1,1"
        equal(planned([1, 3, 4], 0, "window", window),
              planned([1, 3, 4], 0, "window", window + ",dense_steps=0"))
        refused("unknown option 'density'; known: block, decay, dense_layers, dense_steps, sink",
                lambda: planned([1, 3, 4], 0, "radial", "density=0.5"))
    refused("too many tokens", lambda: torch.ops.fovea.plan("topk", q, k, [2**32, 2**32, 12], 0))
    refused("batch and head_dim",
            lambda: torch.ops.fovea.plan("topk", q, k[..., :4], [1, 3, 4], 0))
    near = lambda size, window, stride=1, dilation=1: torch.ops.fovea.neighborhood_attention(
        q, k, v, [size], [window], [stride], [dilation], [False])
    for wrong in ((12, 0), (12, 13), (0, 1), (-12, 1), (12, 3, 2**62), (12, 3, 1, 2**62),
                  (12, 4, 1, 2**62)):
        refused("does not fit", lambda: near(*wrong))
    refused("its layout", lambda: near(11, 3))


def check_sizes():
    """Shapes alone: none of these tensors has memory of its own."""
    many = 2**31
    wide = lambda tokens: torch.zeros(1, 1, 1, 4).expand(1, 2, tokens, 4)
    for ex in EXECUTORS + ("cpu",):
        attend = lambda *x: torch.ops.fovea.attention(*x, executor=ex)
        refused("tensor 'q': expected at most 2147483647 tokens",
                lambda: attend(wide(many), wide(3), wide(3)))
        refused("tensor 'k': expected at most 2147483647 tokens",
                lambda: attend(wide(3), wide(many), wide(many)))
    refused("takes up to 2147483391 tokens", lambda: torch.ops.fovea.attention(
        wide(3), wide(many - 8), wide(many - 8), executor="cpu"))
    meta = lambda *shape: torch.empty(shape, device="meta")
    out, lse = torch.ops.fovea.attention(*(meta(1, 2, 2**20, 2048) for _ in range(3)))
    assert out.shape == (1, 2, 2**20, 2048) and out.numel() == 2**32 and lse.dtype == torch.float32
    refused("heads that divide", lambda: torch.ops.fovea.attention(
        meta(1, 3, 5, 8), meta(1, 2, 5, 8), meta(1, 2, 5, 8)))
    refused("got 3 axes", lambda: torch.ops.fovea.attention(
        meta(2, 5, 8), meta(1, 2, 5, 8), meta(1, 2, 5, 8)))


def main():
    torch.set_num_threads(1)
    torch.ops.load_library(sys.argv[1])
    for check in (check_indices, check_masks, check_shapes, check_special_values, check_strides,
                  check_layouts, check_sizes):
        check()
    print("ok")


if __name__ == "__main__":
    main()
