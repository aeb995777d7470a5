#!/usr/bin/env python3
"""torch's FlexAttention on the lists of `methods_bench --only lists`, and torch's dense attention.

flex_attention_bench.py [--heads N] [--tokens N] [--dim N] [--densities A,B] [--block N]
                        [--rounds N] [--duration MS] [--seed N] [--device cpu]

bf16, random normal numbers, the forward pass compiled by torch.compile. The blocks are those of
random_blocks.h; blocks are full ones, so no mask is computed. Everything runs in turns, in this
order and the opposite one, each warmed up by itself, as in methods_bench; the columns are the same.
"""

import argparse
import statistics
import time

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention


def mixed(x):
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def kept_blocks(seed, heads, rows, density):
    """bool [heads, rows, rows]: `keeps` of random_blocks.h."""
    start = np.uint64((1 + seed * 0x9E3779B97F4A7C15) % 2**64)
    bits = mixed(np.arange(heads * rows * rows, dtype=np.uint64) + start)
    share = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return torch.from_numpy((share < density).reshape(heads, rows, rows))


def block_mask(kept, tokens, block, device):
    """All kept blocks as full ones: nothing is masked inside."""
    counts = kept.sum(2, dtype=torch.int32)[None].to(device)
    order = kept.to(torch.int8).argsort(dim=2, descending=True, stable=True).to(torch.int32)
    indices = order[None].contiguous().to(device)
    none = torch.zeros_like(counts)
    return BlockMask.from_kv_blocks(none, torch.zeros_like(indices), counts, indices,
                                    BLOCK_SIZE=block, mask_mod=None,
                                    seq_lengths=(tokens, tokens), compute_q_blocks=False)


def density_of(kept, tokens, block):
    sizes = torch.full((kept.shape[1],), block, dtype=torch.float64)
    sizes[-1] = tokens - block * (kept.shape[1] - 1)
    pairs = (kept.to(torch.float64) @ sizes @ sizes).sum().item()
    return pairs / (kept.shape[0] * tokens * tokens)


def milliseconds(call, device, duration):
    def once(runs):
        if device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(runs):
                call()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
        start = time.perf_counter()
        for _ in range(runs):
            call()
        return (time.perf_counter() - start) * 1e3

    call()
    runs = max(1, int(duration / max(once(1), 1e-3)))
    once(runs)
    return once(runs) / runs


def dense(backend, q, k, v):
    with sdpa_kernel(backend):
        torch.nn.functional.scaled_dot_product_attention(q, k, v)


def main(options):
    device = torch.device(options.device)
    torch.manual_seed(1)
    shape = (1, options.tokens, options.heads, options.dim)
    q, k, v = (torch.randn(shape, device=device, dtype=torch.bfloat16).transpose(1, 2)
               for _ in range(3))
    products = 4.0 * options.heads * options.dim * options.tokens**2
    compiled = torch.compile(flex_attention, dynamic=False)
    lines = []
    if device.type == "cuda":
        lines = [("sdpa_cudnn", products, lambda: dense(SDPBackend.CUDNN_ATTENTION, q, k, v)),
                 ("sdpa_flash", products, lambda: dense(SDPBackend.FLASH_ATTENTION, q, k, v))]
    lines.append(("flex dense", products, lambda: compiled(q, k, v)))
    rows = -(-options.tokens // options.block)
    for density in map(float, options.densities.split(",")):
        kept = kept_blocks(options.seed, options.heads, rows, density)
        mask = block_mask(kept, options.tokens, options.block, device)
        lines.append((f"flex {options.block}-blocks, density {density:g}",
                      products * density_of(kept, options.tokens, options.block),
                      lambda mask=mask: compiled(q, k, v, block_mask=mask)))
    times = [[] for _ in lines]
    for turn in range(options.rounds):
        order = range(len(lines)) if turn % 2 == 0 else reversed(range(len(lines)))
        for i in order:
            times[i].append(milliseconds(lines[i][2], device, options.duration))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(f"torch {torch.__version__}, {name}\n\nlists, {options.heads} x {options.tokens} x "
          f"{options.dim}\n\n| what | ms | least | TFLOP/s | of dense |\n"
          "| --- | ---: | ---: | ---: | ---: |")
    rates = [count * 1e-9 / statistics.median(ms) for (_, count, _), ms in zip(lines, times)]
    own = rates[[line[0] for line in lines].index("flex dense")]
    for (what, _, _), ms, rate in zip(lines, times, rates):
        print(f"| {what} | {statistics.median(ms):.4f} | {min(ms):.4f} | {rate:.1f} | "
              f"{rate / own:.3f} |")


def parse():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("heads", 12), ("tokens", 32760), ("dim", 128), ("block", 128),
                        ("rounds", 4), ("seed", 1)):
        parser.add_argument("--" + name, type=int, default=value)
    parser.add_argument("--duration", type=float, default=50)
    parser.add_argument("--densities", default="0.5,0.25,0.1,0.05")
    parser.add_argument("--device", default="cuda")
    return parser.parse_args()


if __name__ == "__main__":
    with torch.inference_mode():
        main(parse())
