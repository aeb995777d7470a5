#!/usr/bin/env python3
"""`fovea train` as a user meets it: both stages, resuming, and one clear error for bad input.

Each method is one test; $FOVEA_PROGRAM is the program. More in train_processes_test.py.
"""

import copy
import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import unittest

import numpy

sys.dont_write_bytecode = True
from train_rig import (
    ENVIRONMENT,
    PROGRAM,
    Case,
    read_log,
    read_tensors,
    saved_weights,
    tiny_config,
    write_tensors,
)


class Stages(Case):
    def generate(self, model):
        words = ["generate", "--model", model, "--prompt", "a red cube", "--steps", "2", "--quiet"]
        size = ["--num-frames", "5", "--height", "16", "--width", "16"]
        command = [PROGRAM, *words, *size, "--out", self.folder / "video.gif"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertGreater((self.folder / "video.gif").stat().st_size, 100)

    def check_report(self, stage, steps):
        report = json.loads((self.folder / f"{stage}.json").read_text())
        facts = "fovea command device dtype threads processes parameters seconds peak_memory loss"
        for key in [*facts.split(), "warnings", "fallbacks"]:
            self.assertIn(key, report)
        self.assertEqual((report["steps"], report["skipped"]), (steps, 0))
        self.assertEqual((report["resumed_from_step"], report["processes"]), (0, 1))
        self.assertEqual(report["loss"], read_log(self.out, stage)[-2]["loss"])
        self.assertIn("--report", report["command"])
        self.assertLessEqual({"clips", "train", "save", "evaluate"}, set(report["seconds"]))
        return report

    def test_both_stages_make_a_model(self):
        for stage in ("autoencoder", "transformer"):
            report = self.folder / f"{stage}.json"
            _, text, error = self.succeeds(
                self.train("--quiet", "--report", report, config=tiny_config(stage))
            )
            self.assertEqual(error, "")
            self.assertIn(f"{stage}, 3 steps, loss ", text)
        report = self.check_report("autoencoder", 3)
        quality = report["evaluation"]["reconstruction"]
        self.assertEqual((len(quality), quality[0]["clips"]), (1, 2))
        self.assertGreater(quality[0]["psnr_mean"], 3)
        report = self.check_report("transformer", 3)
        self.assertTrue(0.1 < report["evaluation"]["unseen"][0]["loss"] < 10)
        self.generate(self.out)

    def test_json_lines_and_log(self):
        config = tiny_config("autoencoder", steps=5)
        process = self.start(config=config)
        (code, text, error), _ = self.result(process)
        self.assertEqual((code, error), (0, ""))
        events = [json.loads(line) for line in text.splitlines()]
        stages = [event["stage"] for event in events if event["event"] == "stage"]
        self.assertEqual(stages, ["clips", "train", "save", "evaluate"])
        log = read_log(self.out, "autoencoder")
        told = [event for event in events if event["event"] == "log"]
        self.assertEqual([{"event": "log", **line} for line in log], told)
        self.assertEqual([line["step"] for line in log], [1, 2, 3, 4, 5, 5])
        for step, line in enumerate(log[:-1]):
            rate = 2e-3 * 0.5 * (1 + math.cos(math.pi * step / 5))
            self.assertAlmostEqual(line["learning_rate"], rate, delta=1e-12)
            self.assertTrue(0 < line["loss"] < 10 and 0 < line["gradient_norm"] < 1000)
            self.assertEqual(line["skipped"], 0)
        self.assertIn("evaluation", log[-1])

        # A line of several steps has their means.
        config["log_every"] = 2
        self.succeeds(self.train("--quiet", config=config, out=self.folder / "means"))
        means = read_log(self.folder / "means", "autoencoder")
        self.assertEqual([line["step"] for line in means], [2, 4, 5, 5])
        for line, steps in zip(means, ([0, 1], [2, 3], [4])):
            for key in ("loss", "gradient_norm"):
                expected = sum(log[step][key] for step in steps) / len(steps)
                self.assertAlmostEqual(line[key] / expected, 1, delta=1e-12)

    def test_fine_tuning(self):
        base = self.folder / "base"
        for stage in ("autoencoder", "transformer"):
            self.succeeds(self.train("--quiet", config=tiny_config(stage), out=base))
        before = self.files(base)
        config = tiny_config("transformer", seed=4)
        del config["model"]
        self.succeeds(self.train("--quiet", "--init", base, config=config))
        self.assertEqual(self.files(base), before)
        after = self.files()
        for name in before:
            if name.startswith("training/"):
                continue
            same = not name.endswith("model.safetensors") or name.startswith("vae/")
            self.assertEqual(after[name] == before[name], same, name)
        self.assertNotIn("training/autoencoder.safetensors", after)
        self.generate(self.out)
        self.fails(self.train("--init", base, "--overwrite", out=base), 2, "base", "another folder")

        # The first step starts from the weights of the folder, not from new ones.
        config["optimizer"]["learning_rate"] = 0
        self.succeeds(self.train("--quiet", "--init", base, config=config, out=self.folder / "0"))
        self.assertEqual(
            saved_weights(self.folder / "0", "transformer"), saved_weights(base, "transformer")
        )

    def test_fine_tuning_of_both_stages(self):
        base = self.folder / "base"
        for stage in ("autoencoder", "transformer"):
            self.succeeds(self.train("--quiet", config=tiny_config(stage), out=base))
        for stage in ("autoencoder", "transformer"):
            config = tiny_config(stage, seed=4)
            del config["model"]
            self.succeeds(self.train("--quiet", "--init", base, config=config))
            # The second stage keeps the autoencoder that the first one has trained.
            self.assertNotEqual(
                saved_weights(self.out, "autoencoder"), saved_weights(base, "autoencoder")
            )
        self.generate(self.out)


class BadInput(Case):
    def refuses(self, code, *words, arguments=(), **options):
        """The error, and no trace of the run."""
        before = self.files(self.folder)
        before.pop("config.json", None)
        result = self.train(*arguments, **options)
        self.fails(result, code, *words)
        after = self.files(self.folder)
        after.pop("config.json", None)
        self.assertEqual(after, before)
        if not before:
            self.assertFalse(self.out.exists())

    def test_keys_and_values(self):
        bucket = "data.buckets.0"
        # One of each place; train_config_test and scene_options_test have the others.
        for path, value, *words in (
            ("stage", "diffusion", "'stage'"),
            ("setps", 5, "setps"),
            (f"{bucket}.frames", 6, "buckets[0]", "'frames'"),
            ("optimizer.lr", 0.1, "optimizer", "lr"),
            ("model.vae.width", 5, "vae", "width"),
            ("data.scenes.shapes", ["cube", "egg"], "scenes", "'shapes'"),
        ):
            with self.subTest(key=path, value=value):
                config = tiny_config("autoencoder")
                *parents, key = path.split(".")
                holder = config
                for name in parents:
                    holder = holder[int(name) if name.isdigit() else name]
                holder[key] = value
                self.refuses(3, "config.json", *words, config=config)

    def test_files(self):
        self.refuses(3, "config.json")
        for text in ("{", '{"stage": "autoencoder"}'):
            self.config.write_text(text)
            self.refuses(3, "config.json")

    def test_options(self):
        config = tiny_config("autoencoder")
        self.refuses(2, "--dtype", arguments=["--dtype", "fp16"], config=config)
        self.refuses(2, "--device", arguments=["--gpus", "2", "--device", "cpu"], config=config)
        self.refuses(2, "report", arguments=["--report", self.folder / "no/such/report.json"])
        config["micro_batches"] = 3
        self.refuses(2, "'batch'", config=config)
        done = subprocess.run([PROGRAM, "train", "--config", "x"], capture_output=True, text=True)
        self.fails((done.returncode, done.stdout, done.stderr), 2, "--out is required")

    def test_no_gpu_is_a_device_error(self):
        hidden = {"CUDA_VISIBLE_DEVICES": ""}
        self.config.write_text(json.dumps(tiny_config("autoencoder")))
        self.refuses(6, "cuda", arguments=["--device", "cuda"], variables=hidden)
        code, _, error = self.train("--gpus", "2", "--device", "cuda", variables=hidden)
        self.assertEqual(code, 6, error)
        self.assertIn("error: 6: ", error)
        self.assertFalse(self.out.exists())

    def test_second_stage(self):
        config = tiny_config("transformer")
        self.refuses(3, "vae", "autoencoder", config=config)
        self.autoencoder()
        for part, key, value in (
            ("transformer", "num_layer", 2),
            ("transformer", "text_dim", 17),
            ("transformer", "in_channels", 5),
            ("text_encoder", "d_modell", 16),
            ("scheduler", "shift", 3),
        ):
            with self.subTest(part=part, key=key):
                wrong = copy.deepcopy(config)
                wrong["model"][part][key] = value
                self.refuses(3, "config.json", key, config=wrong)
        weights = self.out / "vae/diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-5])
        self.refuses(3, "vae/diffusion_pytorch_model.safetensors", config=config)

    def test_folder_to_start_from(self):
        init = self.folder / "init"
        for stage in ("autoencoder", "transformer"):
            config = tiny_config(stage)
            self.refuses(2, "'model'", arguments=["--init", init], config=config)
            del config["model"]
            self.refuses(3, str(init), arguments=["--init", init], config=config)
        self.autoencoder(out=init)
        self.refuses(3, "model_index.json", arguments=["--init", init], config=config)
        arguments = ["--init", init, "--overwrite"]
        self.refuses(2, "init", "another", arguments=arguments, out=init, config=config)
        del (config := tiny_config("autoencoder"))["model"]
        self.refuses(2, "init", "another", arguments=arguments, out=init, config=config)
        tensors, _ = read_tensors(weights := init / "vae/diffusion_pytorch_model.safetensors")
        gone = tensors.pop("decoder.conv_out.bias")
        write_tensors(weights, tensors)
        self.refuses(3, "decoder.conv_out.bias", arguments=["--init", init], config=config)
        write_tensors(weights, {**tensors, "decoder.conv_out.bias": gone * numpy.nan})
        self.refuses(5, "decoder.conv_out.bias", arguments=["--init", init], config=config)


class Resume(Case):
    def test_existing_output(self):
        config = tiny_config("autoencoder", steps=2)
        self.succeeds(self.train("--quiet", config=config))
        whole = self.files()
        other = {**config, "seed": 4}
        for arguments, changed, word in (
            ([], config, "--resume"),
            (["--resume"], other, "another configuration"),
            (["--resume", "--dtype", "bf16"], config, "another configuration"),
        ):
            self.fails(self.train(*arguments, config=changed), 7, "out", word)
            self.assertEqual(self.files(), whole)

        # A finished run only writes its model again.
        for name in ("vae/config.json", "vae/diffusion_pytorch_model.safetensors"):
            (self.out / name).unlink()
        report = self.folder / "report.json"
        result = self.train("--resume", "--quiet", "--report", report, config=config)
        self.assertNotIn("loss", self.succeeds(result)[1])
        self.assertEqual(self.files(), whole)
        report = json.loads(report.read_text())
        self.assertEqual((report["resumed_from_step"], report["steps"]), (2, 2))
        self.assertIsNone(report["loss"])

        # Anew, with nothing of the run before.
        self.succeeds(self.train("--overwrite", "--quiet", config=other, out=self.folder / "new"))
        self.succeeds(self.train("--overwrite", "--quiet", config=other))
        self.assertEqual([line["step"] for line in read_log(self.out, "autoencoder")], [1, 2, 2])
        for name in ("vae/diffusion_pytorch_model.safetensors", "training/autoencoder.safetensors"):
            self.assertEqual(self.files()[name], self.files(self.folder / "new")[name])
            self.assertNotEqual(self.files()[name], whole[name])

    def test_two_runs_in_one_folder(self):
        config = tiny_config("autoencoder", steps=10_000)
        process = self.start(config=config)
        self.assertIsNotNone(self.wait_for_step(process, 1))
        files = self.files()
        for argument in ("--resume", "--overwrite"):
            self.fails(self.train(argument, config=config), 7, "training", "another run")
        self.assertTrue(files.keys() <= self.files().keys())
        self.assertIsNotNone(self.wait_for_step(process, 2))  # it goes on
        process.kill()
        self.result(process)
        config["steps"] = 2
        self.succeeds(self.train("--overwrite", "--quiet", config=config))

    def test_another_model_leaves_the_finished_one(self):
        self.autoencoder()
        config = tiny_config("transformer", steps=1)
        self.succeeds(self.train("--quiet", config=config))
        whole = self.files()
        config["model"]["transformer"]["num_layers"] = 3
        self.fails(self.train("--resume", config=config), 7, "another configuration")
        self.assertEqual(self.files(), whole)

    def test_damaged_checkpoint(self):
        self.autoencoder()
        checkpoint = self.out / "training/autoencoder.safetensors"
        whole = checkpoint.read_bytes()
        flipped = bytearray(whole)
        flipped[-1000] ^= 4
        for data in (bytes(flipped), whole[:-10], whole[:50], b"", b"step 1\n"):
            checkpoint.write_bytes(data)
            files = self.files()
            self.fails(self.train("--resume"), 3, "training/autoencoder.safetensors")
            self.assertEqual(self.files(), files)

    def test_killed_at_random_times(self):
        self.autoencoder()
        whole = self.folder / "whole"
        shutil.copytree(self.out, whole)
        config = tiny_config("transformer", steps=80, checkpoint_every=1)
        self.succeeds(self.train("--quiet", config=config, out=whole))

        draw = random.Random(5)
        seen = 0
        for kill in range(12):
            begin = time.monotonic()
            process = self.start("--resume", config=config)
            if kill % 4 == 3:  # while it loads
                time.sleep(draw.uniform(0.3, 1) * loading)
            else:
                first = self.wait_for_step(process, 1)
                loading = time.monotonic() - begin
                self.assertGreaterEqual(first, seen)  # no saved step is lost
                seen = self.wait_for_step(process, first + draw.randrange(1, 4))
                time.sleep(draw.uniform(0, 0.005))
            process.kill()
            self.result(process)
            self.assertEqual(process.returncode, -signal.SIGKILL)
        process = self.start("--resume", config=config)
        for line in process.stdout:
            if '"save"' in line:
                break
        process.kill()
        self.result(process)
        self.succeeds(self.train("--resume", "--quiet", config=config))

        self.assertEqual(
            saved_weights(self.out, "transformer"), saved_weights(whole, "transformer")
        )
        self.assertEqual(set(self.files()), set(self.files(whole)))
        steps = [line["step"] for line in read_log(self.out, "transformer")]
        self.assertEqual(steps, [*range(1, 81), 80])

    def test_signals(self):
        config = tiny_config("autoencoder", steps=40)
        self.succeeds(self.train("--quiet", config=config, out=self.folder / "whole"))
        step = 0
        for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
            process = self.start("--resume", config=config)
            step = self.wait_for_step(process, step + 2)
            process.send_signal(number)
            result, seconds = self.result(process)
            self.fails(result, code, number.name)
            self.assertLess(seconds, 10)
            _, metadata = read_tensors(self.out / "training/autoencoder.safetensors")
            self.assertGreaterEqual(int(metadata["step"]), step)
            self.assertFalse((self.out / "vae").exists())
            step = int(metadata["step"])
        self.succeeds(self.train("--resume", "--quiet", config=config))
        self.assertEqual(
            saved_weights(self.out, "autoencoder"),
            saved_weights(self.folder / "whole", "autoencoder"),
        )

    def test_full_disk(self):
        config = tiny_config("autoencoder", steps=200, checkpoint_every=2)
        process = self.start(config=config)
        self.wait_for_step(process, 3)
        process.send_signal(signal.SIGINT)
        self.fails(self.result(process)[0], 130)
        files = self.files()

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

        self.fails(
            self.train("--resume", preexec_fn=limit), 4, "training/autoencoder.safetensors"
        )
        after = self.files()
        self.assertEqual(set(after), set(files))
        name = "training/autoencoder.safetensors"
        self.assertEqual(after[name], files[name])
        process = self.start("--resume")
        _, metadata = read_tensors(self.out / name)
        self.assertEqual(self.wait_for_step(process, 1), int(metadata["step"]) + 1)


class NonFinite(Case):
    def test_five_steps_in_a_row_end_the_run(self):
        # Each step multiplies the weights by 1 - 10 * 10.
        optimizer = {"learning_rate": 10, "weight_decay": 10, "clip_norm": 0}
        config = tiny_config("autoencoder", steps=60, checkpoint_every=1)
        config["optimizer"] = {**optimizer, "schedule": "constant"}
        self.fails(self.train("--quiet", config=config), 5, "config.json", "not finite", "5 steps")
        log = read_log(self.out, "autoencoder")
        bad = [line["step"] for line in log if "event" in line]
        self.assertEqual(bad, [*range(bad[0], bad[0] + 5)])
        self.assertGreater(bad[0], 1)
        self.assertFalse((self.out / "vae").exists())
        tensors, metadata = read_tensors(self.out / "training/autoencoder.safetensors")
        self.assertEqual((metadata["step"], metadata["skipped"]), (str(bad[0] - 1), "0"))
        for name, values in tensors.items():
            self.assertTrue(numpy.isfinite(values).all(), name)
        result = self.train("--quiet", "--resume", config=config)
        self.fails(result, 5, f"up to step {bad[-1]}")

    def test_one_step_is_skipped(self):
        # Gradients go with the square of the last layer's weights, the loss being a square: the
        # largest of these steps is moved just over what fp32 holds, the others stay below.
        self.autoencoder(out=self.folder / "base")
        weights = self.folder / "base/vae/diffusion_pytorch_model.safetensors"
        tensors, _ = read_tensors(weights)
        config = tiny_config("autoencoder", steps=6, loss={"l1": 0, "gradient": 0, "kl": 0})
        config["optimizer"]["learning_rate"] = 0
        del config["model"]
        scale = 2.0**20
        report = self.folder / "report.json"
        for out in ("measured", "skipped"):
            names = ("decoder.conv_out.weight", "decoder.conv_out.bias")
            write_tensors(weights, {**tensors, **{name: scale * tensors[name] for name in names}})
            arguments = ["--quiet", "--init", self.folder / "base", "--report", report]
            result = self.train(*arguments, "--overwrite", config=config, out=self.folder / out)
            log = read_log(self.folder / out, "autoencoder")
            if out == "measured":
                self.succeeds(result)
                norms = [line["gradient_norm"] for line in log[:-1]]
                top = sorted(norms)[-2:]
                squares = numpy.finfo(numpy.float32).max  # largest sum of squares
                scale *= math.sqrt(math.sqrt(squares) / math.sqrt(top[0] * top[1]))
        self.succeeds(result)
        bad = norms.index(top[1]) + 1
        self.assertEqual([line["step"] for line in log if "event" in line], [bad])
        lines = [line for line in log if "loss" in line]
        self.assertEqual([line["skipped"] for line in lines], [int(n >= bad) for n in range(1, 7)])
        self.assertEqual([line["step"] for line in lines if line["loss"] is None], [bad])
        facts = json.loads(report.read_text())
        self.assertEqual(facts["skipped"], 1)
        self.assertTrue(math.isfinite(facts["loss"]))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
