#!/usr/bin/env python3
"""make_pipeline.py OUT: whole Wan2.1 runs of Python diffusers on tiny random folders.

OUT/cases.json lists the cases; for each of them OUT/<name>.safetensors holds
  noise    fp32 [1, 16, t, h, w]  the initial latents the pipeline drew from its generator
  latents  fp32 [1, 16, t, h, w]  the final ones (`output_type="latent"`)
  video    fp32 [T, H, W, 3]      the decoded video in [0, 1] (`output_type="np"`)
Everything runs in fp32 on the CPU with 6 steps.
"""

import json
import pathlib
import sys

import torch
from make_wan_folder import make_wan_folder
from PIL import Image
from safetensors.torch import save_file

STEPS = 6
NEGATIVE = "blurred, grey picture"

# folder -> arguments of make_wan_folder
FOLDERS = {
    "t2v-12": {"seed": 1, "head_dim": 12},
    "t2v-64-euler": {"seed": 2, "head_dim": 64, "scheduler": "euler", "flow_shift": 5.0},
    "t2v-128": {"seed": 3, "head_dim": 128, "num_heads": 1, "num_layers": 1,
                "transformer": {"cross_attn_norm": False}},
    "i2v-12-clip": {"seed": 4, "head_dim": 12, "i2v": True},
    "i2v-64": {"seed": 5, "head_dim": 64, "i2v": True, "image_encoder": False},
    "i2v-128-clip-euler": {"seed": 6, "head_dim": 128, "num_heads": 1, "num_layers": 1,
                           "i2v": True, "scheduler": "euler"},
}

# name, folder, frames, height, width, guidance, prompt, picture size (I2V)
CASES = [
    ("plain", "t2v-12", 5, 32, 32, 5.0, "a red sphere rolls left, static camera", None),
    ("long", "t2v-12", 17, 48, 80, 5.0, "a blue cube spins &amp; a cone rests,\n pans", None),
    ("picture", "t2v-12", 1, 64, 48, 1.0, "a green torus", None),
    ("empty_prompt", "t2v-12", 5, 48, 32, 3.5, "", None),
    ("euler", "t2v-64-euler", 5, 48, 64, 5.0, "a white cone bounces, camera orbits left", None),
    ("euler_plain", "t2v-64-euler", 17, 32, 48, 1.0, "a white cone bounces", None),
    ("wide_head", "t2v-128", 5, 80, 48, 5.0, "a purple pyramid slides away", None),
    ("image_clip", "i2v-12-clip", 5, 32, 48, 5.0, "the red cube rolls right", (80, 60)),
    ("image_long", "i2v-12-clip", 17, 48, 48, 1.0, "the red cube rests", (48, 48)),
    ("image", "i2v-64", 9, 48, 32, 5.0, "the sphere rises slowly", (33, 70)),
    ("image_euler", "i2v-128-clip-euler", 5, 32, 32, 5.0, "the cone spins", (64, 64)),
]


def make_picture(path, width, height, seed):
    """Smooth colours with a hard-edged disc, so that resizing and cropping both show."""
    generator = torch.Generator("cpu").manual_seed(seed)
    y = torch.linspace(0, 1, height).view(-1, 1, 1)
    x = torch.linspace(0, 1, width).view(1, -1, 1)
    colour = torch.rand((4, 1, 1, 3), generator=generator)
    pixels = colour[0] * x + colour[1] * y + colour[2] * (1 - x) * (1 - y)
    disc = (x - 0.4) ** 2 + (y - 0.6) ** 2 < 0.06
    pixels = torch.where(disc, colour[3], pixels).clamp(0, 1)
    Image.fromarray((pixels * 255).round().to(torch.uint8).numpy()).save(path)


def record_noise(pipeline):
    """Makes the pipeline keep the noise it draws; returns the dict that will hold it."""
    kept = {}
    prepare = pipeline.prepare_latents

    def prepare_latents(*args, **kwargs):
        result = prepare(*args, **kwargs)
        kept["noise"] = (result[0] if isinstance(result, tuple) else result).clone()
        return result

    pipeline.prepare_latents = prepare_latents
    return kept


def run(pipeline, kept, case, out):
    arguments = {"prompt": case["prompt"], "negative_prompt": case["negative_prompt"],
                 "height": case["height"], "width": case["width"],
                 "num_frames": case["num_frames"], "num_inference_steps": case["steps"],
                 "guidance_scale": case["guidance_scale"]}
    if case["image"]:
        arguments["image"] = Image.open(out / case["image"]).convert("RGB")
    tensors = {}
    for output_type in ("latent", "np"):
        generator = torch.Generator("cpu").manual_seed(case["seed"])
        frames = pipeline(**arguments, generator=generator, output_type=output_type).frames
        if output_type == "latent":
            tensors["noise"], tensors["latents"] = kept["noise"], frames
        else:
            tensors["video"] = torch.as_tensor(frames[0])
    return {name: value.float().contiguous() for name, value in tensors.items()}


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    pipelines = {}
    cases = []
    for index, (name, folder, frames, height, width, guidance, prompt, size) in enumerate(CASES):
        if folder not in pipelines:
            pipeline = make_wan_folder(out / folder, **FOLDERS[folder])
            pipeline.set_progress_bar_config(disable=True)
            pipelines[folder] = (pipeline, record_noise(pipeline))
        options = FOLDERS[folder]
        case = {"name": name, "folder": folder, "prompt": prompt, "negative_prompt": NEGATIVE,
                "height": height, "width": width, "num_frames": frames, "steps": STEPS,
                "guidance_scale": guidance, "seed": 100 + index,
                "scheduler": options.get("scheduler", "unipc"),
                "flow_shift": options.get("flow_shift", 3.0),
                "image": f"{name}.png" if size else None}
        if size:
            make_picture(out / case["image"], *size, seed=index)
        save_file(run(*pipelines[folder], case, out), out / f"{name}.safetensors")
        cases.append(case)
    (out / "cases.json").write_text(json.dumps(cases, indent=1))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT")
    torch.set_grad_enabled(False)
    main(pathlib.Path(sys.argv[1]))
