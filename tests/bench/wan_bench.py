#!/usr/bin/env python3
"""The measurements of wan_bench.cpp with Python diffusers, same arguments, same output.

wan_bench.py transformer 1.3b|14b FRAMES HEIGHT WIDTH REPEATS [DEVICE] [DTYPE] [flash|cudnn]
wan_bench.py vae         -        FRAMES HEIGHT WIDTH REPEATS [DEVICE] [DTYPE]
"""

import contextlib
import json
import statistics
import sys
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

CONFIGS = {"1.3b": {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, "14b": {}}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BACKENDS = {"flash": SDPBackend.FLASH_ATTENTION, "cudnn": SDPBackend.CUDNN_ATTENTION}


def median_ms(body, repeats, device):
    def synchronize():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    body()
    times = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        body()
        synchronize()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def make_transformer(name, device, dtype):
    from diffusers import WanTransformer3DModel

    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = WanTransformer3DModel(**CONFIGS[name])
    torch.set_default_dtype(torch.float32)
    for key, value in model.named_parameters():
        if any(part in key for part in model._keep_in_fp32_modules):
            value.data = value.data.float()
    return model.eval()


def main(part, name, frames, height, width, repeats, device="cuda", dtype="bf16", backend=None):
    device = torch.device(device)
    frames, height, width = int(frames), int(height), int(width)
    z = torch.randn(1, 16, (frames - 1) // 4 + 1, height // 8, width // 8, device=device,
                    dtype=DTYPES[dtype])
    if part == "transformer":
        model = make_transformer(name, device, DTYPES[dtype])
        text = torch.randn(1, 512, 4096, device=device, dtype=DTYPES[dtype])
        step = torch.full((1,), 900, device=device)

        def body():
            model(hidden_states=z, timestep=step, encoder_hidden_states=text)
    else:
        from diffusers import AutoencoderKLWan

        vae = AutoencoderKLWan().to(device, DTYPES[dtype]).eval()

        def body():
            vae.decode(z)

    with sdpa_kernel(BACKENDS[backend]) if backend else contextlib.nullcontext():
        ms = median_ms(body, int(repeats), device)
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0
    print(json.dumps({"program": "diffusers " + (backend or "default"), "part": f"{part} {name}",
                      "frames": frames, "height": height, "width": width, "dtype": dtype,
                      "median_ms": round(ms, 2), "peak_gb": round(peak, 2), "device": str(device)}))


if __name__ == "__main__":
    if len(sys.argv) < 7:
        sys.exit(__doc__)
    with torch.inference_mode():
        main(*sys.argv[1:])
