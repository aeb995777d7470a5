"""What the tests of `fovea train` share: a tiny configuration, runs, and their files."""

import hashlib
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time

import numpy

from program_case import ProgramCase

PROGRAM = os.environ.get("FOVEA_PROGRAM", "build/bin/fovea")
LIMIT = 120  # seconds after which a run counts as stuck
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# Threads would only wait for each other: two tests run at a time.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in PLACE}
ENVIRONMENT["OMP_NUM_THREADS"] = "1"


def tiny_config(stage, **changes):
    """Milliseconds a step: 5 frames of 16 x 16, as tiny_config of the trainer's own tests."""
    config = {
        "stage": stage,
        "steps": 3,
        "seed": 3,
        "log_every": 1,
        "checkpoint_every": 1000,
        "text_length": 24,
        "evaluation": {"clips": 2},
        "data": {
            "samples": 1,
            "scenes": {"max_objects": 1},
            "buckets": [{"frames": 5, "height": 16, "width": 16, "batch": 2, "depth": 2}],
        },
        "optimizer": {"learning_rate": 2e-3, "ema": 0.5, "weight_decay": 0.01},
        "model": {
            "vae": {
                "base_dim": 8,
                "dim_mult": [1, 1, 1],
                "num_res_blocks": 1,
                "z_dim": 4,
                "temperal_downsample": [True, True],
                "latents_mean": [0, 0, 0, 0],
                "latents_std": [1, 1, 1, 1],
                "scale_factor_spatial": 4,
            },
            "transformer": {
                "patch_size": [1, 1, 1],
                "num_attention_heads": 2,
                "attention_head_dim": 12,
                "in_channels": 4,
                "out_channels": 4,
                "text_dim": 16,
                "freq_dim": 32,
                "ffn_dim": 48,
                "num_layers": 2,
            },
            "text_encoder": {
                "d_model": 16,
                "d_kv": 8,
                "d_ff": 32,
                "num_layers": 1,
                "num_heads": 2,
            },
            "scheduler": {"flow_shift": 3.0},
        },
    }
    config.update(changes)
    return config


def read_tensors(path):
    """(tensors by name, metadata) of a safetensors file; bf16 as fp32."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            words = numpy.frombuffer(data[begin:end], numpy.uint16).astype(numpy.uint32) << 16
            values = words.view(numpy.float32)
        else:
            kind = {"F32": numpy.float32, "F64": numpy.float64}[entry["dtype"]]
            values = numpy.frombuffer(data[begin:end], kind)
        tensors[name] = values.reshape(entry["shape"])
    return tensors, metadata


def write_tensors(path, tensors):
    """The tensors as a safetensors file of fp32."""
    header, blobs, end = {}, [], 0
    for name, values in tensors.items():
        blobs.append(values.astype(numpy.float32).tobytes())
        begin, end = end, end + len(blobs[-1])
        header[name] = {"dtype": "F32", "shape": values.shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(blobs))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def master_weights(out, stage):
    """The fp32 weights of OUT's checkpoint as one row."""
    tensors, _ = read_tensors(out / "training" / f"{stage}.safetensors")
    return numpy.concatenate(
        [tensors[name].ravel() for name in sorted(tensors) if name.startswith("master/")]
    )


def saved_weights(out, stage):
    """Names and hashes of the weight files of OUT's model that the stage has trained."""
    parts = ["vae"] if stage == "autoencoder" else ["transformer", "text_encoder"]
    files = sorted(file for part in parts for file in out.glob(f"{part}/*.safetensors"))
    return [(file.name, digest(file)) for file in files]


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_log(out, stage):
    lines = (out / "training" / f"{stage}.log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


class Case(ProgramCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.out = self.folder / "out"
        self.config = self.folder / "config.json"

    def command(self, *arguments, config=None, out=None):
        """Command line of a run; `config`: what is written to the configuration file first."""
        if config is not None:
            self.config.write_text(json.dumps(config))
        words = [PROGRAM, "train", "--config", self.config, "--out", out or self.out]
        return [*map(os.fspath, words), "--threads", "1", *map(os.fspath, arguments)]

    def train(self, *arguments, config=None, out=None, variables=None, **options):
        """Runs to the end: (exit code, standard output, standard error)."""
        done = subprocess.run(
            self.command(*arguments, config=config, out=out),
            capture_output=True,
            timeout=LIMIT,
            text=True,
            env={**ENVIRONMENT, **(variables or {})},
            **options,
        )
        return done.returncode, done.stdout, done.stderr

    def start(self, *arguments, config=None, out=None, variables=None):
        """Starts a run that tells its progress as JSON lines."""
        process = subprocess.Popen(
            self.command(*arguments, "--json", config=config, out=out),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, **(variables or {})},
        )
        self.addCleanup(self.end, process)
        return process

    def end(self, process):
        if process.poll() is None:
            process.kill()
        process.communicate()

    def start_pair(self, *arguments, configs, out=None):
        """Two processes of one group: their configurations may differ."""
        port = str(free_port())
        pair = []
        for rank, config in enumerate(configs):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            self.config = self.folder / f"config-{rank}.json"
            pair.append(self.start(*arguments, config=config, out=out, variables=place))
        return pair

    def wait_for_step(self, process, step):
        """The first step from `step` on that the run logs; None when it ends before."""
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "log" and event["step"] >= step:
                return event["step"]
        return None

    def result(self, process, limit=LIMIT):
        """As of `train`, and the seconds that the run took from now on."""
        begin = time.monotonic()
        out, error = process.communicate(timeout=limit)
        return (process.returncode, out, error), time.monotonic() - begin

    def autoencoder(self, out=None, **changes):
        """A folder with an autoencoder, for the second stage."""
        config = tiny_config("autoencoder", **{"steps": 1, "evaluation": {"clips": 1}, **changes})
        self.succeeds(self.train("--quiet", config=config, out=out))

    def files(self, folder=None):
        """Hashes of all files below the folder by name."""
        folder = folder or self.out
        return {
            os.fspath(path.relative_to(folder)): digest(path)
            for path in folder.rglob("*")
            if path.is_file()
        }
