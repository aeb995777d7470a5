"""Loads libfovea_torch.so into Python: attention operators against formulas written in torch."""

import itertools
import math
import sys

import torch
import torch.nn.functional as F

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor",
          "test_aot_dispatch_dynamic")


def softmax(q, k, v, visible=None, bias=None, scale=None):
    """out and lse of softmax(q k^T scale + bias) v over the visible pairs; rows without any: 0."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    logits = q @ k.transpose(2, 3) * (scale or 1 / math.sqrt(q.shape[3]))
    if bias is not None:
        logits = logits + bias
    if visible is not None:
        logits = logits.masked_fill(~visible, -math.inf)
    lse = logits.logsumexp(3)
    return torch.exp(logits - lse.masked_fill(lse == -math.inf, 0)[..., None]) @ v, lse


def close(got, expected, bound):
    assert got.shape == expected.shape and got.dtype == expected.dtype, (got.shape, expected.shape)
    error = (got - expected).nan_to_num().norm() / expected.nan_to_num().norm().clamp_min(1e-30)
    assert error <= bound, error


def draw(q_len, kv_len, dtype=torch.float64, grad=False, heads=4, dim=8):
    shapes = ((2, heads, q_len, dim), *[(2, heads // 2, kv_len, dim)] * 2)
    return [torch.randn(*shape, dtype=dtype).requires_grad_(grad) for shape in shapes]


def check_attention():
    attention = torch.ops.fovea.attention
    for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        q, k, v = draw(21, 30, dtype)
        for scale in (None, 0.7):
            expected = softmax(q, k, v, scale=scale)
            for a, b in zip(attention(q, k, v, scale=scale), expected):
                close(a, b, bound)
        # Blocks of 8 by 7, some of them skipped, under orders and with padding.
        mask = torch.rand(2, 4, 3, 5) < 0.6
        mask[..., 0] = True
        q_order = torch.stack([torch.randperm(21) for _ in range(8)]).view(2, 4, 21).int()
        kv_order = torch.stack([torch.randperm(30) for _ in range(4)]).view(2, 2, 30).int()
        length = torch.tensor([30, 17])
        rows = torch.zeros(2, 4, 21, dtype=torch.long).scatter_(
            2, q_order.long(), (torch.arange(21) // 8).expand(2, 4, 21))
        keys = torch.zeros(2, 2, 30, dtype=torch.long).scatter_(
            2, kv_order.long(), (torch.arange(30) // 7).expand(2, 2, 30)).repeat_interleave(2, 1)
        visible = mask.gather(2, rows[..., None].expand(2, 4, 21, 5)).gather(
            3, keys[:, :, None].expand(2, 4, 21, 30))
        visible = visible & (torch.arange(30) < length[:, None])[:, None, None]
        got = attention(q, k, v, mask, [8, 7], q_order=q_order, kv_order=kv_order, kv_len=length)
        for a, b in zip(got, softmax(q, k, v, visible)):
            close(a, b, bound)
        # Blocks of any size, and one more way to see a key: a whole block by its mean.
        offsets = [torch.tensor([0, 3, 3, 21]).int(), torch.tensor([0, 10, 14, 30]).int()]
        classes = torch.tensor([[1, 2, 0], [1, 1, 1], [2, 0, 1]]).byte()[None, None]
        out, lse = attention(q, k, v, classes, q_offsets=offsets[0], kv_offsets=offsets[1])
        parts, columns = [k, v], []
        for x in (k, v):
            means = [x[:, :, a:b].mean(2, keepdim=True) for a, b in ((0, 10), (10, 14), (14, 30))]
            columns.append(torch.cat([x] + means, 2))
        size = torch.tensor([10, 4, 16])
        row = classes[0, 0, [0] * 3 + [2] * 18]
        visible = torch.cat([(row == 1).repeat_interleave(size, 1), row == 2], 1)
        bias = torch.cat([torch.zeros(30), size.double().log()]).to(dtype)
        for a, b in zip((out, lse), softmax(q, *columns, visible, bias)):
            close(a, b, bound)
        bias = torch.randn(1, 4, 21, 30, dtype=dtype)
        close(attention(q, k, v, bias=bias)[0], softmax(q, k, v, bias=bias)[0], bound)
        causal = torch.ones(21, 30, dtype=torch.bool).tril()
        close(attention(q, k, v, is_causal=True)[1], softmax(q, k, v, causal)[1], bound)


def window(i, length, size, stride, dilation, causal):
    """The tokens that token i sees: neighborhood attention of any stride, by its definition."""
    residue, position = i % dilation, i // dilation
    tokens = list(range(residue, length, dilation))
    n = len(tokens)
    group = position // stride * stride
    if causal:
        leader = min(group + stride - 1, n - 1)
        return [t for t in tokens[max(0, leader - size + 1):] if t <= i]
    leader = min(group + stride // 2, n - 1)
    first = min(max(leader - size // 2, 0), n - size)
    return tokens[first:first + size]


def check_neighborhood():
    op = torch.ops.fovea.neighborhood_attention
    cases = [
        ([17], [5], [1], [1], [False]),
        ([17], [5], [3], [2], [False]),
        ([17], [4], [2], [1], [True]),
        ([6, 7], [3, 4], [1, 2], [2, 1], [False, True]),
        ([4, 5, 6], [2, 3, 3], [1, 3, 1], [2, 1, 2], [True, False, False]),
    ]
    for size, win, stride, dilation, causal in cases:
        length = math.prod(size)
        q, k, v = draw(length, length)
        visible = torch.zeros(length, length, dtype=torch.bool)
        for row in itertools.product(*map(range, size)):
            seen = [window(*axis) for axis in zip(row, size, win, stride, dilation, causal)]
            flat = lambda index: sum(
                i * math.prod(size[a + 1:]) for a, i in enumerate(index))
            for key in itertools.product(*seen):
                visible[flat(row), flat(key)] = True
        for got, expected in zip(op(q, k, v, size, win, stride, dilation, causal),
                                 softmax(q, k, v, visible)):
            close(got, expected, 1e-12)
        extra_k, extra_v = torch.randn(2, 2, 3, 8).double(), torch.randn(2, 2, 3, 8).double()
        got = op(q, k, v, size, win, stride, dilation, causal, extra_k=extra_k, extra_v=extra_v)
        everywhere = torch.ones(length, 3, dtype=torch.bool)
        close(got[0], softmax(q, torch.cat([k, extra_k], 2), torch.cat([v, extra_v], 2),
                              torch.cat([visible, everywhere], 1))[0], 1e-12)


def large_kernel_weights(channels, local, dilated):
    draw_one = lambda *shape: torch.randn(*shape, dtype=torch.float64).requires_grad_()
    return (draw_one(channels, 1, local, local), draw_one(channels),
            draw_one(channels, 1, dilated, dilated), draw_one(channels),
            draw_one(channels, channels, 1, 1), draw_one(channels))


def depthwise(x, weight, bias, dilation):
    """Sum over shifted pictures; what lies outside is 0."""
    reach = weight.shape[2] // 2 * dilation
    wide, out = F.pad(x, (reach,) * 4), bias[:, None, None].expand_as(x)
    for i, j in itertools.product(range(weight.shape[2]), repeat=2):
        shifted = wide[:, :, i * dilation:, j * dilation:][:, :, :x.shape[2], :x.shape[3]]
        out = out + weight[:, 0, i, j][:, None, None] * shifted
    return out


def check_large_kernel():
    op = torch.ops.fovea.large_kernel_attention
    for channels, local, dilated, dilation, size in ((3, 5, 7, 3, (9, 7)), (1, 1, 3, 1, (1, 4))):
        x = torch.randn(2, channels, *size, dtype=torch.float64).requires_grad_()
        w1, b1, w2, b2, w3, b3 = large_kernel_weights(channels, local, dilated)
        a = depthwise(depthwise(x, w1, b1, 1), w2, b2, dilation)
        a = torch.einsum("nchw,dc->ndhw", a, w3[:, :, 0, 0]) + b3[:, None, None]
        args = (x, w1, b1, w2, b2, dilation, w3, b3)
        close(op(*args), x * a, 1e-12)
    torch.library.opcheck(op.default, args, test_utils=CHECKS)
    assert torch.autograd.gradcheck(op, args)
    for bad, name in ((1, "w_local"), (4, "b_dilated"), (6, "w_point")):
        broken = list(args)
        broken[bad] = torch.randn(2, 2, dtype=torch.float64)
        try:
            op(*broken)
        except RuntimeError as error:
            assert f"tensor '{name}'" in str(error), error
        else:
            raise AssertionError(f"{name}: accepted")


def check_sparse_linear():
    op = torch.ops.fovea.sparse_linear_attention
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 3e-6)):
        q, k, v = draw(50, 70, dtype)
        weight, bias = torch.randn(8, 8, dtype=dtype), torch.randn(8, dtype=dtype)
        block = [16, 10]
        keys, values = (x.repeat_interleave(2, 1) for x in (k, v))
        means = [torch.stack([part.mean(2) for part in x.split(size, 2)], 2)
                 for x, size in zip((q, keys), block)]
        scores = means[0] @ means[1].transpose(2, 3)
        kept = max(1, math.floor(0.3 * 7 + 0.5))
        mask = torch.zeros(scores.shape, dtype=torch.bool).scatter_(
            3, scores.topk(kept, 3).indices, True)
        features = {"softmax": lambda x: x.softmax(3), "elu": lambda x: F.elu(x) + 1,
                    "relu": F.relu}
        other = torch.rand(1, 4, 4, 7) < 0.5
        for name, over, chosen in itertools.product(features, ("unselected", "all"), (mask, other)):
            given = None if chosen is mask else chosen
            out, used = op(q, k, v, weight, bias, 0.3, block, name, over, block_mask=given)
            assert torch.equal(used, chosen), (name, over)
            visible = chosen.repeat_interleave(16, 2)[:, :, :50].repeat_interleave(10, 3)
            linear = features[name](q) @ features[name](keys).transpose(2, 3)
            if over == "unselected":
                linear = linear.masked_fill(visible, 0)
            total = linear.sum(3, keepdim=True)
            linear = linear @ values / (total + 1e-5).masked_fill(total == 0, 1)
            expected = softmax(q, k, v, visible)[0] + linear @ weight.T + bias
            close(out, expected, bound)
    for part, density, block, name in (("a density of 0", 0, [8, 8], "softmax"),
                                       ("two sizes", 0.5, [8, 0], "softmax"),
                                       ("feature map 'cube'", 0.5, [8, 8], "cube")):
        try:
            op(q, k, v, weight, bias, density, block, name)
        except RuntimeError as error:
            assert part in str(error), error
        else:
            raise AssertionError(f"{part}: accepted")


def check_plan():
    q, k, v = draw(128 + 10, 128 + 10, torch.float32)
    options = "density=0.25,block_q=32,block_kv=16"
    for text_first in (False, True):
        plan = torch.ops.fovea.plan("topk", q, k, [2, 8, 8], 10, options, text_first=text_first)
        q_order, kv_order, mask, q_offsets, kv_offsets = plan
        assert mask.shape == (2, 4, 5, 9) and q_offsets.shape == (1, 1, 6), mask.shape
        out, lse = torch.ops.fovea.attention(q, k, v, mask, q_order=q_order, kv_order=kv_order,
                                             q_offsets=q_offsets, kv_offsets=kv_offsets)
        planned = torch.ops.fovea.planned_attention(q, k, v, [], "topk", [2, 8, 8], 10, text_first,
                                                    options)
        close(planned[0], out, 1e-6)
        close(planned[1], lse, 1e-6)
        dense = torch.ops.fovea.attention(q, k, v)[0]
        assert (out - dense).norm() / dense.norm() > 1e-2, "the plan changes nothing"
    text = torch.ops.fovea.plan_text("window", q, k, [2, 8, 8], 10, "tile=1,4,4,window=1,3,3")
    assert text.startswith("window: q tiles 1x4x4"), text
    mask = torch.ops.fovea.plan("neighborhood", q, k, [2, 8, 8], 10, "window=1,3,3")[2]
    assert mask.dim() == 4 and mask.max() == 1, mask


def check_gradients():
    ops = torch.ops.fovea
    mask = torch.tensor([[1, 0, 2], [0, 2, 1]]).byte()[None, None]
    q, k, v = draw(9, 12, grad=True, heads=2, dim=3)
    bias = torch.randn(1, 2, 9, 12).double().requires_grad_()
    near = draw(12, 12, grad=True, heads=2, dim=3)
    extra = [torch.randn(2, 1, 2, 3).double().requires_grad_() for _ in range(2)]
    projection = [torch.randn(*size).double().requires_grad_() for size in ((3, 3), (3,))]
    cases = [
        (ops.attention, (q, k, v), {}),
        (ops.attention, (q, k, v, mask, [5, 4], 0.4), {"bias": bias, "is_causal": True}),
        (ops.neighborhood_attention, (*near, [3, 4], [2, 3], [1, 1], [1, 1], [False, True]),
         {"extra_k": extra[0], "extra_v": extra[1]}),
        (ops.planned_attention, (*near, [], "window", [1, 3, 4], 0, False,
                                 "tile=1,2,2,window=1,1,1"), {}),
        (ops.planned_attention, (*near, projection, "sla", [1, 3, 4], 0, False,
                                 "density=0.3,tile=1,2,2"), {}),
        (ops.sparse_linear_attention, (*near, *projection, 0.4, [4, 3]), {}),
    ]
    for op, args, kwargs in cases:
        torch.library.opcheck(op.default, args, kwargs, test_utils=CHECKS)
        inputs = [x for x in (*args, *kwargs.values())
                  if torch.is_tensor(x) and x.requires_grad]

        def run(*tensors):
            left = iter(tensors)
            swap = lambda x: next(left) if torch.is_tensor(x) and x.requires_grad else x
            positional = [swap(x) for x in args]
            results = op(*positional, **{name: swap(x) for name, x in kwargs.items()})
            return tuple(x for x in results if x.is_floating_point())

        assert torch.autograd.gradcheck(run, inputs), op
    sla = lambda *params: ops.planned_attention(*near, params, "sla", [1, 3, 4], 0, False,
                                                "density=0.3,tile=1,2,2")
    assert torch.autograd.gradcheck(sla, projection)
    out, _ = ops.attention(q, k, v)
    gradient, = torch.autograd.grad(out.sum(), q, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        assert "not implemented" in str(error), error
    else:
        raise AssertionError("a second derivative was made up")


def by_block(x, size, largest):
    """Values of x [batch, heads, len, dim] and the factors of their blocks."""
    pieces = x.split(size, 2)
    scale = torch.cat([p.abs().amax((2, 3), keepdim=True).expand_as(p) for p in pieces], 2)
    scale = scale / largest
    return torch.where(scale == 0, 1, scale)


def check_precision():
    """int8_qk and fp8 by their definitions, in fp64 and through the fast path of fp32."""
    def e4m3(x):
        return x.to(torch.float8_e4m3fn).to(x.dtype)

    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-3)):
        q, k, v = draw(50, 70, dtype, dim=16)
        k = k + 3
        mask = torch.rand(2, 4, 4, 5) < 0.6
        mask[..., 0] = True
        visible = mask.repeat_interleave(16, 2)[:, :, :50].repeat_interleave(16, 3)[..., :70]
        mean = k.mean(2, keepdim=True)
        shared = {}
        for name, x in (("q", q), ("k", k - mean)):
            scale = by_block(x, 16, 127)
            shared[name] = torch.round(x / scale).clamp(-127, 127) * scale
        lost = (q @ mean.repeat_interleave(2, 1).transpose(2, 3)) / 4
        got = torch.ops.fovea.attention(q, k, v, mask, [16, 16], precision="int8_qk")
        for a, b in zip(got, softmax(shared["q"], shared["k"], v, visible, lost)):
            close(a, b, bound)
        values = [e4m3(x / by_block(x, 16, 448)) * by_block(x, 16, 448) for x in (q, k)]
        scale = v.abs().amax(2, keepdim=True) / 448
        keys, numbers = (x.repeat_interleave(2, 1) for x in (values[1], e4m3(v / scale) * scale))
        logits = (values[0] @ keys.transpose(2, 3) / 4).masked_fill(~visible, -math.inf)
        top = logits.amax(3, keepdim=True)
        power = top / math.log(2)
        number = torch.exp2(power - torch.ceil(power - math.log2(448)))
        weights = e4m3(torch.exp(logits - top) * number) / number
        total = weights.sum(3, keepdim=True)
        out, lse = torch.ops.fovea.attention(q, k, v, mask, [16, 16], precision="fp8")
        close(out, weights @ numbers / total, 3e-3)
        close(lse, (top + total.log()).squeeze(3), 3e-3)


def check_refusals():
    ops = torch.ops.fovea
    q, k, v = draw(8, 8, torch.float32)
    grid = [1, 1, 8]
    for part, call in (
        ("tensor 'k'", lambda: ops.attention(q, k[..., :4], v)),
        ("unknown executor 'abacus'", lambda: ops.attention(q, k, v, executor="abacus")),
        ("unknown precision 'fp3'", lambda: ops.attention(q, k, v, precision="fp3")),
        ("query order is no permutation", lambda: ops.attention(
            q, k, v, torch.ones(1, 1, 1, 1).bool(), q_order=torch.zeros(1, 1, 8).int())),
        ("key offsets do not ascend", lambda: ops.attention(
            q, k, v, torch.ones(1, 1, 1, 2).bool(), kv_offsets=torch.tensor([0, 9, 8]).int())),
        ("class 3 of a block", lambda: ops.attention(
            q, k, v, torch.full((1, 1, 1, 1), 3).byte())),
        ("expected a class map", lambda: ops.attention(q, k, v, torch.ones(1, 1, 2, 2).bool())),
        ("does not fit", lambda: ops.neighborhood_attention(
            q, k, v, [8], [5], [1], [2], [False])),
        ("does not fit", lambda: ops.neighborhood_attention(
            q, k, v, [8], [3], [0], [1], [False])),
        ("does not fit", lambda: ops.neighborhood_attention(
            q, k, v, [8], [3], [1], [-1], [False])),
        ("its layout", lambda: ops.neighborhood_attention(
            q, k, v, [7], [3], [1], [1], [False])),
        ("unknown planner", lambda: ops.planned_attention(q, k, v, [], "abacus", grid)),
        ("its layout", lambda: ops.planned_attention(q, k, v, [], "dense", [1, 1, 7])),
        ("takes 0 parameters or none, got 1", lambda:
         ops.planned_attention(q, k, v, [q], "dense", grid)),
    ):
        try:
            call()
        except RuntimeError as error:
            assert part in str(error), f"{part}: {error}"
        else:
            raise AssertionError(f"{part}: accepted")


def main():
    torch.manual_seed(0)
    torch.ops.load_library(sys.argv[1])
    check_attention()
    check_precision()
    check_neighborhood()
    check_large_kernel()
    check_sparse_linear()
    check_plan()
    check_refusals()
    check_gradients()
    print("ok")


if __name__ == "__main__":
    main()
