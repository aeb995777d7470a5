#!/usr/bin/env python3
"""Wall time of `fovea generate` and of Python diffusers' `WanPipeline` on the same folder.

    generate_bench.py --fovea build/bin/fovea --model FOLDER --device cuda --dtype bf16 \\
        --num-frames 49 --height 256 --width 256 --steps 30 --repeats 5

Same prompts, seeds, sizes, steps, guidance, threads and dtype (the autoencoder stays fp32 in both).
Measured one after the other, `--repeats` times, medians of

- generate: from prompt to decoded frames, networks loaded and warm. Fovea: second of two requests
  of one process, its own times of the stages; they contain writing the frames as PNG files (into
  memory, where /dev/shm is there). diffusers: a call of a pipeline that has run before, frames as
  NumPy arrays, nothing written.
- whole: a new process from its start to its end, one request; loads LibTorch or Python's packages,
  and the model.

Last line: how far the frames of both lie apart, so that nobody compares different work.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")

STAGES = ("encode_text", "denoise", "decode")


def read_arguments():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fovea", default="build/bin/fovea", help="the program")
    parser.add_argument("--model", required=True, help="diffusers folder of a WanPipeline")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "bf16", "fp16"])
    parser.add_argument("--num-frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--guidance-scale", type=float, default=5.0)
    parser.add_argument("--prompt", default="a red sphere rolls left, static camera")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--json", help="also write all times to this file")
    parser.add_argument("--diffusers-once", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


class Diffusers:
    """A loaded pipeline."""

    def __init__(self, options):
        import torch
        from diffusers import AutoencoderKLWan, WanPipeline

        torch.set_num_threads(options.threads)
        self.torch, self.options = torch, options
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        vae = AutoencoderKLWan.from_pretrained(options.model, subfolder="vae",
                                               dtype=torch.float32)
        self.pipeline = WanPipeline.from_pretrained(options.model, vae=vae,
                                                    dtype=dtype[options.dtype])
        self.pipeline.to(options.device)
        self.pipeline.set_progress_bar_config(disable=True)

    def generate(self, seed):
        """Seconds and frames [frames, height, width, 3] from 0 to 1; they are on the host, so the
        device has finished."""
        o = self.options
        start = time.perf_counter()
        frames = self.pipeline(
            prompt=o.prompt, num_frames=o.num_frames, height=o.height, width=o.width,
            num_inference_steps=o.steps, guidance_scale=o.guidance_scale,
            generator=self.torch.Generator("cpu").manual_seed(seed), output_type="np").frames[0]
        return time.perf_counter() - start, frames


def run(command, options):
    """Seconds and standard output of a process; both programs get the same environment."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed: {done.stderr.strip()}")
    return time.perf_counter() - start, done.stdout


def run_fovea(options, folder, requests):
    """Runs a list of requests in one process; returns seconds, events and report."""
    listed = folder / "prompts.jsonl"
    listed.write_text("".join(json.dumps(request) + "\n" for request in requests))
    report = folder / "report.json"
    seconds, out = run(
        [options.fovea, "generate", "--model", options.model, "--prompts", listed, "--out", folder,
         "--overwrite", "--json", "--report", report, "--device", options.device, "--dtype",
         options.dtype, "--threads", str(options.threads), "--num-frames", str(options.num_frames),
         "--height", str(options.height), "--width", str(options.width), "--steps",
         str(options.steps), "--guidance-scale", str(options.guidance_scale)], options)
    return seconds, [json.loads(line) for line in out.splitlines()], json.loads(report.read_text())


def fovea_generate(options, folder, seed):
    """Seconds of each stage of the second of two requests, and the run's report."""
    # Other texts first: a text that comes again is not encoded again.
    warm = {"prompt": "warm-up: " + options.prompt, "negative_prompt": "warm-up", "seed": seed + 1,
            "out": "warm-%04d.png"}
    measured = {"prompt": options.prompt, "seed": seed, "out": "frame-%04d.png"}
    _, events, report = run_fovea(options, folder, [warm, measured])
    texts = [event for event in events
             if event["event"] == "progress" and event["stage"] == "encode_text"]
    half = texts[-1]["total"] // 2
    seconds = {"encode_text": texts[-1]["seconds"] - texts[half]["seconds"]}
    for stage in ("denoise", "decode"):
        ended = [event["seconds"] for event in events
                 if event["event"] == "stage" and event["stage"] == stage]
        assert len(ended) == 2, f"{stage}: {len(ended)} times"
        # The report has the sum of both requests.
        assert abs(sum(ended) - report["seconds"][stage]) < 0.01, report["seconds"]
        seconds[stage] = ended[1]
    return seconds, report


def fovea_whole(options, folder, seed):
    request = {"prompt": options.prompt, "seed": seed, "out": "whole-%04d.png"}
    return run_fovea(options, folder, [request])[0]


def frames_apart(folder, frames):
    """Mean and largest difference between the PNG files and `frames`, in levels of 255."""
    import numpy
    from PIL import Image

    files = sorted(folder.glob("frame-*.png"))
    assert len(files) == len(frames), f"{len(files)} files, {len(frames)} frames"
    apart = [numpy.abs(numpy.asarray(Image.open(file)).astype(float) - frame * 255)
             for file, frame in zip(files, frames)]
    return float(numpy.mean(apart)), float(numpy.max(apart))


def show(name, fovea, diffusers):
    def text(times):
        return f"{statistics.median(times):9.3f} s ({min(times):.3f}-{max(times):.3f})"

    ratio = statistics.median(diffusers) / statistics.median(fovea)
    print(f"{name:9} fovea {text(fovea)}   diffusers {text(diffusers)}   ratio {ratio:.2f}")


def main(options):
    if options.diffusers_once:
        Diffusers(options).generate(seed=0)
        return
    reference = Diffusers(options)
    reference.generate(seed=1)
    stages, times = {stage: [] for stage in STAGES}, {"generate": ([], []), "whole": ([], [])}
    once = [sys.executable, *sys.argv, "--diffusers-once"]
    memory = pathlib.Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = pathlib.Path(name)
        for _ in range(options.repeats):
            seconds, report = fovea_generate(options, folder, seed=0)
            for stage in STAGES:
                stages[stage].append(seconds[stage])
            times["generate"][0].append(sum(seconds.values()))
            python_seconds, frames = reference.generate(seed=0)
            times["generate"][1].append(python_seconds)
            times["whole"][0].append(fovea_whole(options, folder, seed=0))
            times["whole"][1].append(run(once, options)[0])
        mean, worst = frames_apart(folder, frames)
    print(f"{options.num_frames}x{options.height}x{options.width}, {options.steps} steps, "
          f"{report['dtype']}, {report['device']}, {', '.join(report['attention'])}")
    for column, (fovea, diffusers) in times.items():
        show(column, fovea, diffusers)
    print("fovea's stages: " + ", ".join(f"{stage} {statistics.median(stages[stage]):.3f} s"
                                         for stage in STAGES))
    print(f"frames apart: mean {mean:.2f}, at most {worst:.1f} of 255 levels")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(
            {"options": vars(options), "device": report["device"], "seconds": times,
             "fovea_stages": stages, "frames_apart": {"mean": mean, "max": worst}}, indent=2))


if __name__ == "__main__":
    main(read_arguments())
