#!/usr/bin/env python3
"""The shipped model in diffusers and in Fovea: same seed, same video, fp32 on the CPU.

mini_test.py [FRAMES SIDE STEPS]: `WanPipeline.from_pretrained` on assets/models/mini must load
without a missing or unexpected key; its frames and those of `fovea generate` must be alike to 50 dB
(PSNR over all pixels of 8 bits).
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy
import torch
from diffusers import WanPipeline
from PIL import Image

PROGRAM = os.environ.get("FOVEA_PROGRAM", "build/bin/fovea")
ROOT = pathlib.Path(os.environ.get("FOVEA_SOURCE_DIR", "."))
MODEL = ROOT / "assets" / "models" / "mini"
PROMPT = "A red sphere rolls left and a blue cube spins, static camera"
SEED = 11
NEEDED_DB = 50


def frames_of_fovea(options, folder):
    subprocess.run([PROGRAM, "generate", "--model", MODEL, "--prompt", PROMPT, "--seed", str(SEED),
                    *(str(word) for pair in options.items() for word in pair),
                    "--out", folder / "%03d.png", "--quiet"], check=True)
    return numpy.stack([numpy.asarray(Image.open(path).convert("RGB"))
                        for path in sorted(folder.glob("*.png"))])


def frames_of_diffusers(frames, side, steps):
    pipeline = WanPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(SEED)
    video = pipeline(PROMPT, num_frames=frames, height=side, width=side, guidance_scale=5.0,
                     num_inference_steps=steps, generator=generator).frames[0]
    return (video * 255).round().clip(0, 255).astype("uint8")


def main(frames=9, side=128, steps=6):
    with tempfile.TemporaryDirectory() as folder:
        options = {"--num-frames": frames, "--height": side, "--width": side, "--steps": steps,
                   "--guidance-scale": 5}
        ours = frames_of_fovea(options, pathlib.Path(folder)).astype(float)
    theirs = frames_of_diffusers(frames, side, steps).astype(float)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    spread = theirs.std()
    error = numpy.square(ours - theirs).mean()
    psnr = 10 * numpy.log10(255**2 / max(error, 1e-9))
    print(f"{frames} frames {side}x{side}, {steps} steps: PSNR {psnr:.1f} dB against diffusers, "
          f"largest difference {numpy.abs(ours - theirs).max():.0f} levels")
    assert spread > 10, f"the video is blank: standard deviation {spread:.1f} levels"
    assert psnr >= NEEDED_DB, f"expected {NEEDED_DB} dB"


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
