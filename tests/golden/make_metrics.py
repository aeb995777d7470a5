"""Pairs of pictures with their PSNR and SSIM, the formulas written out with NumPy in fp64.

Writes A.bin and B.bin, [height, width, channels] bytes, and cases.json. SSIM is computed window by
window, with the whole 11 x 11 weights at once: Wang et al., 2004, equations 13 to 16.
"""
import json
import pathlib
import sys

import numpy as np

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
rng = np.random.default_rng(3)


def smooth(height, width, channels):
    y, x = np.mgrid[0:height, 0:width]
    planes = [127 + 90 * np.sin(x / (5 + 3 * c) + y / 9) + 35 * ((x // 8 + y // 8 + c) % 2)
              for c in range(channels)]
    return np.clip(np.stack(planes, -1), 0, 255)


def ssim(a, b):
    offsets = np.arange(11) - 5
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    weights = np.outer(line, line)
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for channel in range(a.shape[2]):
        windows = [np.lib.stride_tricks.sliding_window_view(p[..., channel].astype(np.float64),
                                                            (11, 11)) for p in (a, b)]
        mean = [np.einsum("yxij,ij->yx", w, weights) for w in windows]
        centred = [w - m[..., None, None] for w, m in zip(windows, mean)]
        var = [np.einsum("yxij,ij->yx", c * c, weights) for c in centred]
        cov = np.einsum("yxij,ij->yx", centred[0] * centred[1], weights)
        values.append((2 * mean[0] * mean[1] + c1) * (2 * cov + c2)
                      / ((mean[0]**2 + mean[1]**2 + c1) * (var[0] + var[1] + c2)))
    return float(np.mean(values))


def case(name, a, b):
    a, b = (np.clip(p, 0, 255).round().astype(np.uint8) for p in (a, b))
    (out / f"{name}-a.bin").write_bytes(a.tobytes())
    (out / f"{name}-b.bin").write_bytes(b.tobytes())
    mse = float(np.mean((a.astype(np.float64) - b) ** 2))
    height, width, channels = a.shape
    return {"name": name, "width": width, "height": height, "channels": channels, "mse": mse,
            "psnr": float(10 * np.log10(255**2 / mse)), "ssim": ssim(a, b)}


scene = smooth(48, 64, 3)
cases = [
    case("noise", scene, scene + rng.normal(0, 9, scene.shape)),
    case("shift", scene, np.roll(scene, 2, axis=1)),
    case("dark", scene, scene * 0.4),
    case("inverse", scene, 255 - scene),
    case("smallest", scene[:11, :11], scene[5:16, 7:18]),
    case("wide", smooth(13, 97, 1), smooth(13, 97, 1) + rng.normal(0, 30, (13, 97, 1))),
    case("random", rng.integers(0, 256, (33, 29, 3)), rng.integers(0, 256, (33, 29, 3))),
]
(out / "cases.json").write_text(json.dumps(cases, indent=1))
