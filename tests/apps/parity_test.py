#!/usr/bin/env python3
"""`fovea generate` against Python diffusers on model folders whose configs are drawn at random.

parity_test.py [FOLDERS [SEED]]: makes that many folders (text- and image-to-video; sizes, kinds of
text encoder, patches, schedulers, shards and latent statistics at random), runs both programs in
fp32 on the CPU and compares final latents (relative L2 <= 1e-3) and pictures (less than a level).
"""

import os
import pathlib
import random
import subprocess
import sys
import tempfile

import numpy
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import T5Config, T5EncoderModel, UMT5Config, UMT5EncoderModel
from transformers.utils import logging

PROGRAM = os.environ.get("FOVEA_PROGRAM", "build/bin/fovea")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
import make_wan_folder as make  # noqa: E402  (needs the path above)


def random_text_encoder(rng, generator, vocab_size, dim):
    config, model = rng.choice([(UMT5Config, UMT5EncoderModel), (T5Config, T5EncoderModel)])
    options = {
        "vocab_size": max(vocab_size, rng.choice([0, 500])),
        "d_model": dim,
        "d_kv": rng.choice([4, 8, 10]),
        "d_ff": rng.choice([37, 64]),
        "num_layers": rng.choice([1, 3]),
        "num_heads": rng.choice([2, 4]),
        "relative_attention_num_buckets": rng.choice([8, 32]),
        "relative_attention_max_distance": rng.choice([20, 128]),
        "feed_forward_proj": rng.choice(["gated-gelu", "relu", "gelu", "gated-silu"]),
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    return make.randomize(model(config(**options)), generator, 0.5).eval()


def random_vae(rng, generator, z_dim):
    levels = rng.choice(
        [
            {"temperal_downsample": [False, True, True], "dim_mult": [1, 1, 1, 1]},
            {"temperal_downsample": [True, False, True], "dim_mult": [1, 2, 2, 4]},
            {"temperal_downsample": [True, True, False], "dim_mult": [1, 1, 2, 2]},
        ]
    )
    return make.make_vae(
        generator,
        base_dim=rng.choice([3, 4, 6]),
        z_dim=z_dim,
        num_res_blocks=rng.choice([1, 2]),
        latents_mean=[rng.uniform(-1, 1) for _ in range(z_dim)],
        latents_std=[rng.uniform(0.5, 3) for _ in range(z_dim)],
        **levels,
    )


def random_transformer(rng, generator, z_dim, text_dim, i2v, clip):
    head_dim = rng.choice([2, 4, 6, 8, 10, 12, 20, 32, 64, 72, 128])
    num_heads = rng.choice([1, 2, 3])
    return make.make_transformer(
        generator,
        patch_size=rng.choice([(1, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 2)]),
        num_attention_heads=num_heads,
        attention_head_dim=head_dim,
        in_channels=2 * z_dim + 4 if i2v else z_dim,
        out_channels=z_dim,
        text_dim=text_dim,
        freq_dim=rng.choice([32, 65, 256]),
        ffn_dim=rng.choice([17, 64]),
        num_layers=rng.choice([1, 2]),
        cross_attn_norm=rng.random() < 0.7,
        eps=rng.choice([1e-6, 1e-5]),
        rope_max_seq_len=rng.choice([32, 64]),
        image_dim=32 if clip else None,
        added_kv_proj_dim=head_dim * num_heads if clip else None,
    )


def random_scheduler(rng):
    if rng.random() < 0.6:
        return UniPCMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=rng.choice([1.0, 3.0, 5.0, 12.0]),
            solver_order=rng.choice([1, 2, 2, 3]),
        )
    return FlowMatchEulerDiscreteScheduler(shift=rng.choice([1.0, 3.0, 7.0]))


def random_folder(rng, generator, folder):
    """Writes a model folder and returns the pipeline that Python loads from it."""
    i2v = rng.random() < 0.35
    clip = i2v and rng.random() < 0.5
    z_dim, text_dim = rng.choice([4, 8, 16, 16]), rng.choice([24, 32, 48])
    tokenizer = make.make_tokenizer(folder, rng.choice([100, 256, 400]))
    parts = {
        "tokenizer": tokenizer,
        "text_encoder": random_text_encoder(rng, generator, len(tokenizer), text_dim),
        "vae": random_vae(rng, generator, z_dim),
        "transformer": random_transformer(rng, generator, z_dim, text_dim, i2v, clip),
        "scheduler": random_scheduler(rng),
    }
    if clip:
        parts["image_encoder"], parts["image_processor"] = make.make_image_encoder(generator)
    kind = WanImageToVideoPipeline if i2v else WanPipeline
    kind(**parts).save_pretrained(folder, max_shard_size=rng.choice(["10GB", "60KB"]))
    pipeline = kind.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def random_request(rng):
    prompts = ["a red sphere rolls left", "", "A blue cube & a “cone”\tspins  <b>",
               "日本語 emoji 😀 mixed text " + "word " * 40]
    return {
        "prompt": rng.choice(prompts),
        "negative_prompt": rng.choice(["", "bad quality"]),
        "height": rng.choice([32, 48]),
        "width": rng.choice([32, 64, 80]),
        "num_frames": rng.choice([1, 5, 9]),
        "num_inference_steps": rng.choice([1, 2, 4, 6]),
        "guidance_scale": rng.choice([1.0, 3.3, 5.0]),
    }


def run_program(folder, request, seed, picture):
    options = {name.replace("_", "-"): value for name, value in request.items() if name != "image"}
    options["steps"] = options.pop("num-inference-steps")
    options.update({"model": folder, "seed": seed, "out": folder / "v-%02d.png",
                    "save-latents": folder / "latents.safetensors"})
    if picture:
        options["image"] = picture
    command = [PROGRAM, "generate", "--quiet", "--strict"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}: {done.stderr.strip()}")
    frames = [numpy.asarray(Image.open(folder / f"v-{index:02d}.png")).astype(float)
              for index in range(request["num_frames"])]
    return load_file(folder / "latents.safetensors")["latents"], numpy.stack(frames)


def compare(seed, folder):
    """Returns relative error of the latents and worst difference of a pixel, in levels."""
    rng, generator = random.Random(seed), torch.Generator("cpu").manual_seed(seed)
    pipeline = random_folder(rng, generator, folder)
    request, picture = random_request(rng), None
    noise_seed = rng.randrange(1 << 32)
    if isinstance(pipeline, WanImageToVideoPipeline):
        pixels = torch.rand(40, 56, 3, generator=generator)
        request["image"] = Image.fromarray((pixels * 255).byte().numpy())
        picture = folder / "picture.png"
        request["image"].save(picture)
    latents, frames = run_program(folder, request, noise_seed, picture)

    def reference(output_type):
        noise = torch.Generator("cpu").manual_seed(noise_seed)
        return pipeline(**request, generator=noise, output_type=output_type).frames

    expected = reference("latent")
    error = ((latents - expected).norm() / expected.norm()).item()
    worst = float(numpy.abs(frames - reference("np")[0] * 255).max())
    print(f"folder {seed}: latents {error:.1e}, worst pixel {worst:.2f} levels")
    return error, worst


def main(count=8, first_seed=1):
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    failed = 0
    for seed in range(first_seed, first_seed + count):
        with tempfile.TemporaryDirectory() as folder:
            error, worst = compare(seed, pathlib.Path(folder))
            failed += not (error <= 1e-3 and worst < 1)
    print(f"{count} folders, {failed} differ")
    return 1 if failed else 0


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    sys.exit(main(*map(int, sys.argv[1:])))
