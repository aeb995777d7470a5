#!/usr/bin/env python3
"""`fovea generate` as a user meets it: outputs, resuming, and one clear error for every bad input.

Each method is one test; $FOVEA_PROGRAM is the program, $FOVEA_SOURCE_DIR the repository.
"""

import json
import os
import pathlib
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

sys.dont_write_bytecode = True
from program_case import PROGRAM, SOURCE, FolderCase, run

MODEL = SOURCE / "assets/models/tiny-random"
SMALL = ["--num-frames", "5", "--height", "32", "--width", "48", "--steps", "3", "--seed", "7"]


class Case(FolderCase):
    def generate(self, *arguments, model=MODEL, out="video.mp4", prompt="a red cube", **options):
        return run(
            "generate",
            "--model",
            model,
            "--prompt",
            prompt,
            "--out",
            self.folder / out,
            *SMALL,
            "--quiet",
            *arguments,
            **options,
        )

    def copy_model(self):
        """A model to damage, outside the output folder."""
        copy = pathlib.Path(tempfile.mkdtemp()) / "model"
        self.addCleanup(shutil.rmtree, copy.parent, ignore_errors=True)
        shutil.copytree(MODEL, copy)
        return copy

    def edit_json(self, path, **changes):
        value = json.loads(path.read_text())
        value.update(changes)
        path.write_text(json.dumps(value))

    def comment(self, path):
        code, out, error = run("inspect", "--json", path)
        self.assertEqual(code, 0, error)
        return json.loads(json.loads(out)["comment"])


class Outputs(Case):
    def test_mp4_holds_prompt_seed_and_settings(self):
        self.succeeds(self.generate("--fps", "23.976", prompt="a ♥ cube"))
        settings = self.comment(self.folder / "video.mp4")
        self.assertEqual(
            (settings["prompt"], settings["seed"], settings["steps"]), ("a ♥ cube", 7, 3)
        )
        self.assertEqual(settings["fps"], "24000/1001")

    def test_every_format(self):
        for out in ("v.webm", "v.gif", "frame-%03d.png", "f%d.png"):
            self.succeeds(self.generate(out=out))
        names = sorted(os.listdir(self.folder))
        self.assertIn("frame-004.png", names)
        self.assertIn("f0.png", names)
        self.assertEqual(len(names), 12)
        for name in ("v.webm", "v.gif", "f0.png"):
            self.assertEqual(self.comment(self.folder / name)["seed"], 7)

    def test_same_command_same_bytes(self):
        for out in ("a.mp4", "b.mp4"):
            self.succeeds(self.generate(out=out))
        self.assertEqual((self.folder / "a.mp4").read_bytes(), (self.folder / "b.mp4").read_bytes())

    def test_attention_methods(self):
        frames = {}
        for name, options in (
            ("dense", []),
            ("topk", ["density=0.3", "block_q=16", "block_kv=16"]),
            ("radial", ["block=16", "sink_frames=0"]),
            ("window", ["tile=1,2,2", "window=1,1,1"]),
            ("neighborhood", ["window=3,3,3"]),
            ("sparge", ["top_p=0.5", "block_q=16", "block_kv=16"]),
            ("xattention", ["top_p=0.5", "stride=4", "block_q=16", "block_kv=16"]),
            ("psa", ["thresholds=0.3,0.5,0.7,0.9", "block_q=16", "block_kv=16"]),
            ("sla", ["density=0.3", "projection=identity", "block_q=16", "block_kv=16"]),
            ("svg2", ["top_p=0.5", "q_clusters=4", "kv_clusters=8"]),
            ("fps", ["tile=1,2,2", "window=1,2,2"]),
            ("paro", ["axes=HWF", "block=16"]),
        ):
            report = self.folder / f"{name}.json"
            words = [word for option in options for word in ("--attn", option)]
            words += ["--attention", name, "--report", report]
            result = self.generate(*words, out=f"{name}-%d.png")
            self.assertEqual(result[0], 0, result[2])
            report = json.loads(report.read_text())
            self.assertTrue(any(f"self: {name} on " in kind for kind in report["attention"]))
            settings = report["videos"][0]["settings"]
            self.assertEqual(settings["attention"], name)
            self.assertEqual(len(settings["attention_options"]), len(options))
            frames[name] = (self.folder / f"{name}-0.png").read_bytes()[-2000:]
        # Others keep all of so small a grid.
        self.assertNotEqual(frames["window"], frames["dense"])

    def test_executors(self):
        frames = {}
        for name, used in (("auto", "cpu"), ("checked", "checked:cpu"),
                           ("checked:cpu", "checked:cpu"), ("reference", "reference")):
            report, out = self.folder / "report.json", self.folder / "x.gif"
            self.succeeds(self.generate("--executor", name, "--report", report, out=out.name))
            kinds = json.loads(report.read_text())["attention"]
            own = [kind for kind in kinds if kind.startswith(("self", "cross"))]
            self.assertEqual({kind.split(" on ")[1] for kind in own}, {used}, name)
            frames[name] = out.read_bytes()
            report.unlink(), out.unlink()
        self.assertEqual(frames["auto"], frames["checked"])
        self.assertEqual(frames["auto"], frames["checked:cpu"])

    def test_report_holds_what_the_contract_lists(self):
        self.succeeds(self.generate("--report", self.folder / "report.json"))
        report = json.loads((self.folder / "report.json").read_text())
        for key in (
            "fovea",
            "command",
            "device",
            "dtype",
            "threads",
            "attention",
            "peak_memory",
            "seconds",
            "inputs",
            "videos",
            "warnings",
            "fallbacks",
            "model",
            "scheduler",
        ):
            self.assertIn(key, report)
        video = report["videos"][0]
        self.assertEqual(video["settings"]["num_frames"], 5)
        self.assertEqual(video["delivered"]["num_frames"], 5)
        self.assertEqual(len(video["files"][0]["sha256"]), 64)
        self.assertGreater(report["peak_memory"]["host_bytes"], 1 << 20)
        self.assertIn("--seed", report["command"])

    def test_json_lines(self):
        code, out, error = run(
            "generate",
            "--model",
            MODEL,
            "--prompt",
            "x",
            *SMALL,
            "--json",
            "--out",
            self.folder / "v.gif",
        )
        self.assertEqual((code, error), (0, ""))
        events = [json.loads(line) for line in out.splitlines()]
        stages = [event["stage"] for event in events if event["event"] == "stage"]
        for stage in ("load_text_encoder", "encode_text", "load_transformer", "denoise", "decode"):
            self.assertIn(stage, stages)
        steps = [
            event["done"]
            for event in events
            if event["event"] == "progress" and event["stage"] == "denoise"
        ]
        self.assertEqual(steps, [0, 1, 2, 3])
        self.assertEqual(events[-1]["event"], "output")

    def test_latents_go_out_and_in(self):
        from safetensors.torch import load_file, save_file
        import torch

        noise = torch.randn((1, 16, 2, 4, 6), generator=torch.Generator("cpu").manual_seed(7))
        save_file({"latents": noise}, self.folder / "noise.safetensors")
        self.succeeds(self.generate("--save-latents", self.folder / "a.safetensors", out="a.gif"))
        self.succeeds(
            self.generate(
                "--save-latents",
                self.folder / "b.safetensors",
                out="b.gif",
                *["--latents", self.folder / "noise.safetensors", "--seed", "99"],
            )
        )
        a = load_file(self.folder / "a.safetensors")["latents"]
        b = load_file(self.folder / "b.safetensors")["latents"]
        self.assertEqual((tuple(a.shape), a.dtype), ((1, 16, 2, 4, 6), torch.float32))
        self.assertTrue(torch.equal(a, b))

    def test_prompt_list_with_one_load(self):
        lines = [{"prompt": "a red cube"}, {"prompt": "a blue cone", "seed": 8, "out": "blue.gif"}]
        lines = [json.dumps(line) for line in lines]
        (self.folder / "list.jsonl").write_text(lines[0] + "\n\n" + lines[1] + "\n")
        (self.folder / "out").mkdir()
        code, out, error = run(
            "generate",
            "--model",
            MODEL,
            "--prompts",
            self.folder / "list.jsonl",
            "--out",
            self.folder / "out",
            *SMALL,
            "--json",
        )
        self.assertEqual(code, 0, error)
        self.assertEqual(sorted(os.listdir(self.folder / "out")), ["0001.mp4", "blue.gif"])
        self.assertEqual(out.count('"stage":"load_transformer","seconds"'), 1)
        self.assertEqual(self.comment(self.folder / "out/blue.gif")["seed"], 8)


class Resume(Case):
    def interrupt(self, stage, done, *arguments, number=signal.SIGINT, out="v.gif"):
        """Starts a run and sends the signal when the stage has come so far."""
        command = [
            PROGRAM,
            "generate",
            "--model",
            MODEL,
            "--prompt",
            "x",
            *SMALL,
            "--steps",
            "40",
            "--json",
            "--out",
            self.folder / out,
            *arguments,
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for line in process.stdout:
            event = json.loads(line)
            if event.get("stage") == stage and event.get("done", 0) >= done:
                break
        process.send_signal(number)
        start = time.monotonic()
        _, error = process.communicate(timeout=30)
        return process.returncode, "", error.decode(), time.monotonic() - start

    def test_signals_leave_nothing(self):
        for stage, done in (
            ("load_text_encoder", 0),
            ("encode_text", 0),
            ("load_vae", 0),
            ("denoise", 1),
            ("denoise", 20),
            ("decode", 1),
        ):
            for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)):
                *result, seconds = self.interrupt(stage, done, number=number)
                if result[0] == 0:  # it was over before the signal arrived
                    os.remove(self.folder / "v.gif")
                    continue
                self.fails(result, code, "interrupted")
                self.assertLess(seconds, 10)

    def test_resumed_equals_uninterrupted(self):
        whole = ["--steps", "40", "--save-latents", self.folder / "whole.safetensors"]
        self.succeeds(self.generate(*whole, out="whole.gif", prompt="x"))
        result = self.interrupt("denoise", 12, "--resume")
        self.fails(
            result[:3], 130, left=["v.gif.resume.safetensors", "whole.gif", "whole.safetensors"]
        )
        self.succeeds(
            self.generate(
                "--steps",
                "40",
                "--resume",
                "--report",
                self.folder / "r.json",
                "--save-latents",
                self.folder / "v.safetensors",
                out="v.gif",
                prompt="x",
            )
        )
        report = json.loads((self.folder / "r.json").read_text())
        self.assertGreaterEqual(report["videos"][0]["resumed_from_step"], 12)
        self.assertEqual(
            (self.folder / "whole.safetensors").read_bytes(),
            (self.folder / "v.safetensors").read_bytes(),
        )
        self.assertEqual(
            (self.folder / "whole.gif").read_bytes(), (self.folder / "v.gif").read_bytes()
        )
        self.assertFalse((self.folder / "v.gif.resume.safetensors").exists())

    def test_state_of_other_settings_is_a_conflict(self):
        self.interrupt("denoise", 12, "--resume")
        state = ["v.gif.resume.safetensors"]
        self.fails(
            self.generate("--steps", "40", "--resume", "--seed", "8", out="v.gif", prompt="x"),
            7,
            "settings",
            left=state,
        )

    def test_damaged_state_is_bad_data(self):
        self.interrupt("denoise", 12, "--resume")
        state = self.folder / "v.gif.resume.safetensors"
        state.write_bytes(state.read_bytes()[:-5])
        self.fails(
            self.generate("--steps", "40", "--resume", out="v.gif", prompt="x"),
            3,
            left=[state.name],
        )

    def test_finished_videos_are_skipped(self):
        self.succeeds(self.generate("--resume"))
        before = (self.folder / "video.mp4").stat().st_mtime_ns
        self.succeeds(self.generate("--resume"))
        self.assertEqual((self.folder / "video.mp4").stat().st_mtime_ns, before)
        self.fails(self.generate("--resume", "--seed", "9"), 7, "video.mp4", left=["video.mp4"])


class BadOptions(Case):
    def test_values(self):
        for arguments, word in (
            (["--num-frames", "6"], "--num-frames"),
            (["--num-frames", "0"], "--num-frames"),
            (["--height", "40"], "--height"),
            (["--width", "-32"], "--width"),
            (["--steps", "0"], "--steps"),
            (["--steps", "two"], "--steps"),
            (["--guidance-scale", "nan"], "--guidance-scale"),
            (["--guidance-scale", "inf"], "--guidance-scale"),
            (["--fps", "0"], "--fps"),
            (["--fps", "fast"], "--fps"),
            (["--dtype", "int4"], "--dtype"),
            (["--device", "tpu"], "--device"),
            (["--threads", "-1"], "--threads"),
            (["--scheduler", "ddim"], "ddim"),
            (["--flow-shift", "0"], "shift"),
            (["--no-such-option"], "no-such-option"),
            (["--attention", "fast"], "fast"),
            (["--attn", "density"], "KEY=VALUE"),
            (["--attention", "topk", "--attn", "densty=0.5"], "densty"),
            (["--attention", "topk", "--attn", "density=2"], "density"),
            (["--attention", "window", "--attn", "tile=4,0,4"], "tile"),
            (["--attention", "radial", "--attn", "dense_steps=-1"], "dense_steps"),
        ):
            self.fails(self.generate(*arguments), 2, word)

    def test_missing_options(self):
        self.fails(run("generate"), 2)
        self.fails(run("generate", "--model", MODEL, "--out", self.folder / "v.mp4"), 2, "--prompt")
        self.fails(run("no-such-command"), 2)

    def test_sizes_above_the_budget(self):
        self.fails(
            run(
                "generate",
                "--model",
                MODEL,
                "--prompt",
                "x",
                "--out",
                self.folder / "v.mp4",
                "--width",
                "8192",
            ),
            4,
            "4096",
        )

    def test_no_gpu_is_a_device_error(self):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.fails(self.generate("--device", "cuda", env=environment), 6, "cuda")

    def test_output_exists_and_stays(self):
        (self.folder / "video.mp4").write_bytes(b"mine")
        self.fails(self.generate(), 7, "video.mp4", left=["video.mp4"])
        self.assertEqual((self.folder / "video.mp4").read_bytes(), b"mine")
        self.succeeds(self.generate("--overwrite"))

    def test_failed_run_keeps_the_old_output(self):
        (self.folder / "video.mp4").write_bytes(b"mine")
        self.fails(
            run(
                "generate",
                "--model",
                MODEL,
                "--prompt",
                "x",
                "--overwrite",
                "--num-frames",
                "6",
                "--out",
                self.folder / "video.mp4",
            ),
            2,
            left=["video.mp4"],
        )
        self.assertEqual((self.folder / "video.mp4").read_bytes(), b"mine")

    def test_output_folder_missing(self):
        self.fails(self.generate(out="no/such/video.mp4"), 2, "folder")

    def test_unknown_format(self):
        self.fails(self.generate(out="video.xyz"), 2, "xyz")
        self.fails(self.generate(out="f%s.png"), 2)

    def test_gif_above_50_fps(self):
        self.fails(self.generate("--fps", "60", out="v.gif"), 2, "50")

    def test_disk_full(self):
        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, 700))

        for out in ("v.mp4", "v.gif", "v.webm", "f%d.png"):
            self.fails(self.generate(out=out, preexec_fn=limit), 4)

    def test_prompt_limits(self):
        self.succeeds(self.generate(prompt="red " * 4096 * 4))
        os.remove(self.folder / "video.mp4")
        listing = self.folder / "list.jsonl"
        listing.write_text(json.dumps({"prompt": "x" * 65537}))
        self.fails(
            run("generate", "--model", MODEL, "--prompts", listing, "--out", self.folder, *SMALL),
            4,
            "prompt",
            left=["list.jsonl"],
        )

    def test_prompt_of_invalid_utf8(self):
        self.fails(self.generate(prompt=b"red \xff cube"), 3, "byte 4")

    def test_prompt_list_names_the_line(self):
        (self.folder / "out").mkdir()
        listing = self.folder / "list.jsonl"
        for text, word in (
            ('{"prompt": "x"}\n{"prompt": }', "list.jsonl:2"),
            ('{"promt": "x"}', "prompt"),
            ('{"prompt": "x", "out": "../x.mp4"}', "out"),
            ("\n\n", "no prompt"),
            ('{"prompt": "x", "steps": "many"}', "steps"),
            ("[]", "list.jsonl:1"),
        ):
            listing.write_text(text)
            self.fails(
                run(
                    "generate",
                    "--model",
                    MODEL,
                    "--prompts",
                    listing,
                    "--out",
                    self.folder / "out",
                    *SMALL,
                ),
                3,
                word,
                left=["list.jsonl", "out"],
            )
        self.assertEqual(os.listdir(self.folder / "out"), [])

    def test_unknown_executors_are_refused_with_the_choices(self):
        # In between are those of GPUs, where the program is built with CUDA.
        choices = ("known: auto, checked, ", "cpu, sdpa, reference, ", "checked:cpu, checked:sdpa")
        for name in ("abacus", "checked:", "checked:abacus", "CPU", ""):
            self.fails(self.generate("--executor", name), 2, f"unknown executor '{name}'", *choices)


class BadModels(Case):
    def weights(self, model, part="transformer"):
        return model / part / "diffusion_pytorch_model.safetensors"

    def test_no_folder_or_index(self):
        self.fails(self.generate(model="/no/such/model"), 3, "/no/such/model")
        model = self.copy_model()
        os.remove(model / "model_index.json")
        self.fails(self.generate(model=model), 3, "model_index.json")

    def test_missing_component(self):
        model = self.copy_model()
        shutil.rmtree(model / "vae")
        self.fails(self.generate(model=model), 3, "vae")

    def test_missing_weights(self):
        model = self.copy_model()
        os.remove(self.weights(model))
        self.fails(self.generate(model=model), 3, "transformer")

    def test_missing_shard(self):
        model = self.copy_model()
        path = self.weights(model)
        size = struct.unpack("<Q", path.read_bytes()[:8])[0]
        names = [
            name for name in json.loads(path.read_bytes()[8 : 8 + size]) if name != "__metadata__"
        ]
        index = {"metadata": {}, "weight_map": {name: "part-1.safetensors" for name in names}}
        index["weight_map"][names[0]] = "part-2.safetensors"
        path.rename(path.parent / "part-1.safetensors")
        (path.parent / "diffusion_pytorch_model.safetensors.index.json").write_text(
            json.dumps(index)
        )
        self.fails(self.generate(model=model), 3, "part-2.safetensors")

    def test_truncated_and_lying_headers(self):
        for part in ("transformer", "vae"):
            model = self.copy_model()
            whole = self.weights(model, part).read_bytes()
            lies = (
                whole[:-10],
                whole[:100],
                whole[:4],
                b"",
                struct.pack("<Q", 1 << 60) + whole[8:],
                struct.pack("<Q", 3) + whole[8:],
            )
            for data in lies:
                self.weights(model, part).write_bytes(data)
                self.fails(self.generate(model=model), 3, "diffusion_pytorch_model.safetensors")

    def test_wrong_dtype(self):
        model = self.copy_model()
        path = self.weights(model)
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = data[8 : 8 + size].replace(b'"F32"', b'"I32"', 1)
        path.write_bytes(data[:8] + header + data[8 + size :])
        self.fails(self.generate(model=model), 3, "I32")

    def test_missing_and_unused_keys(self):
        from safetensors.torch import load_file, save_file

        model = self.copy_model()
        tensors = load_file(self.weights(model))
        gone = tensors.pop("proj_out.bias")
        save_file(tensors, self.weights(model))
        self.fails(self.generate(model=model), 3, "proj_out.bias")
        tensors["proj_out.bias"] = gone
        tensors["surplus"] = gone.clone()
        save_file(tensors, self.weights(model))
        _, _, error = self.succeeds(self.generate(model=model))
        self.assertIn("warning:", error)
        self.assertIn("surplus", error)
        os.remove(self.folder / "video.mp4")
        self.fails(self.generate("--strict", model=model), 3, "surplus")

    def test_config_values_are_named(self):
        for part, file, key, value in (
            ("transformer", "config.json", "attention_head_dim", 13),
            ("transformer", "config.json", "num_layers", "two"),
            ("vae", "config.json", "z_dim", -1),
            ("text_encoder", "config.json", "d_model", 0),
            ("scheduler", "scheduler_config.json", "solver_type", "magic"),
            (".", "model_index.json", "_class_name", "FluxPipeline"),
        ):
            model = self.copy_model()
            self.edit_json(model / part / file, **{key: value})
            self.fails(self.generate(model=model), 3, key)

    def test_unknown_config_key(self):
        model = self.copy_model()
        self.edit_json(model / "transformer/config.json", brand_new_option=1)
        _, _, error = self.succeeds(self.generate("--report", self.folder / "r.json", model=model))
        self.assertEqual(
            len([line for line in error.splitlines() if "brand_new_option" in line]), 1
        )
        report = json.loads((self.folder / "r.json").read_text())
        self.assertTrue(any("brand_new_option" in line for line in report["warnings"]))
        os.remove(self.folder / "video.mp4")
        self.fails(self.generate("--strict", model=model), 3, "brand_new_option", left=["r.json"])

    def test_malformed_json(self):
        for part, file in (
            (".", "model_index.json"),
            ("transformer", "config.json"),
            ("tokenizer", "tokenizer.json"),
        ):
            model = self.copy_model()
            path = model / part / file
            path.write_bytes(path.read_bytes()[:-20])
            self.fails(self.generate(model=model), 3, file)

    def test_non_finite_weights(self):
        from safetensors.torch import load_file, save_file

        model = self.copy_model()
        tensors = load_file(self.weights(model))
        tensors["proj_out.bias"][0] = float("nan")
        save_file(tensors, self.weights(model))
        self.fails(self.generate(model=model), 5, "proj_out.bias")

    def test_overflowing_activations_name_the_step(self):
        from safetensors.torch import load_file, save_file

        model = self.copy_model()
        tensors = load_file(self.weights(model))
        tensors["proj_out.weight"] *= 1e38
        save_file(tensors, self.weights(model))
        self.fails(self.generate(model=model), 5, "step 1 of 3")


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
