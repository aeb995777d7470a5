#!/ usr / bin / env python3
"""Python diffusers on a model folder that the C++ test has written, and `fovea generate` on it.

new_folder_check.py FOLDER: fails unless every part loads without a missing or unexpected key and
without a warning, and both programs give the same latents (relative L2 <= 1e-4, fp32, CPU).
"""

import logging
import os
import pathlib
import subprocess
import sys
import tempfile
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
from diffusers.utils import logging as diffusers_logging
from safetensors.torch import load_file
from transformers import UMT5EncoderModel
from transformers.utils import logging as transformers_logging

PROMPT = "a red sphere rolls left, Static camera é"


class Collector(logging.Handler):
    """Keeps what the packages have to say."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def check_keys(folder):
    for part, model in (("text_encoder", UMT5EncoderModel), ("vae", AutoencoderKLWan),
                        ("transformer", WanTransformer3DModel)):
        _, info = model.from_pretrained(folder, subfolder=part, output_loading_info=True)
        left = {key: value for key, value in info.items() if value}
        assert not left, f"{part}: {left}"


def load(folder):
    collector = Collector()
    for name in ("diffusers", "transformers"):
        logging.getLogger(name).addHandler(collector)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pipeline = WanPipeline.from_pretrained(folder)
    lines = collector.lines + [str(one.message) for one in caught]
    assert not lines, f"warnings: {lines}"
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def run_program(folder, prompt, latents):
    program = os.environ["FOVEA_PROGRAM"]
    command = [program, "generate", "--quiet", "--strict", "--model", folder, "--prompt", prompt,
               "--num-frames", "5", "--height", "32", "--width", "32", "--steps", "2", "--seed",
               "3", "--dtype", "fp32", "--overwrite", "--save-latents", latents, "--out",
               latents.parent / "v-%d.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return load_file(latents)["latents"]


def main(folder):
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = pathlib.Path(folder)
    for part in ("text_encoder", "transformer", "vae"):
        assert len(list((folder / part).glob("*-of-*.safetensors"))) > 1, f"{part}: no shards"
    check_keys(folder)
    pipeline = load(folder)
    dtypes = {value.dtype for part in (pipeline.text_encoder, pipeline.transformer, pipeline.vae)
              for value in part.parameters()}
    assert dtypes == {torch.float32}, dtypes  # though the files hold bf16
    expected = pipeline(prompt=PROMPT, num_frames=5, height=32, width=32, num_inference_steps=2,
                        generator=torch.Generator("cpu").manual_seed(3),
                        output_type="latent").frames
    with tempfile.TemporaryDirectory() as out:
        latents = run_program(folder, PROMPT, pathlib.Path(out) / "latents.safetensors")
        other = run_program(folder, "a blue cube", pathlib.Path(out) / "other.safetensors")
    error = ((latents - expected).norm() / expected.norm()).item()
#The text must count, or equal latents would say nothing about tokenizer and text encoder.
    change = ((latents - other).norm() / expected.norm()).item()
    print(f"latents {error:.1e}, by another prompt {change:.1e}")
    return 0 if error <= 1e-4 and change > 1e-2 else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1]))
