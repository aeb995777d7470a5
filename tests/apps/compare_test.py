#!/usr/bin/env python3
"""`fovea compare`: what it writes, whether its numbers are true, one clear error a bad input."""

import csv
import html.parser
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import unittest

import numpy
import torch
from PIL import Image
from safetensors.torch import save_file

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "support"))
from lpips_reference import ALEX, lpips, random_tensors
from program_case import PROGRAM, SOURCE, FolderCase, run

MODEL = SOURCE / "assets/models/tiny-random"
SMALL = ["--num-frames", "5", "--height", "32", "--width", "48", "--steps", "3", "--seed", "7",
         "--threads", "1"]
WINDOW = "window:tile=1,2,2:window=1,1,1"
METHODS = f"topk:density=0.3|0.6:block_q=16,{WINDOW}"
VOID = {"meta", "input", "img", "br", "path", "rect", "circle"}


class PageReader(html.parser.HTMLParser):
    """Open tags must be closed in order; all that is loaded must be inside the page."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.text, self.count = [], [], "", {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag, tag

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)

    def handle_data(self, data):
        self.text += data


class Case(FolderCase):
    def compare(self, *arguments, prompt="a red cube", methods=METHODS):
        prompts = [] if prompt is None else ["--prompt", prompt]
        return run("compare", "--model", MODEL, *prompts, "--methods", methods, "--quiet",
                   "--out", self.folder / "out", *SMALL, *arguments)

    def result(self):
        return json.loads((self.folder / "out/compare.json").read_text())


class Compare(Case):
    def test_files_and_tables(self):
        code, out, error = self.compare(prompt='<b>"red" & ♥</b>')
        self.assertEqual((code, error), (0, ""))
        names = ["0001-dense", "0001-topk-density-0.3-block_q-16",
                 "0001-topk-density-0.6-block_q-16", "0001-window-tile-1-2-2-window-1-1-1", "0001"]
        expected = [f"{name}.mp4" for name in names] + ["0001-sheet.png"]
        expected += [f"compare.{kind}" for kind in ("csv", "html", "json", "md")]
        self.assertEqual(sorted(os.listdir(self.folder / "out")), sorted(expected))
        self.assertIn((self.folder / "out/compare.md").read_text(), out)
        result = self.result()
        labels = [method["method"] for method in result["methods"]]
        self.assertEqual(labels[0], "dense")
        self.assertEqual(labels[1], "topk density=0.3 block_q=16")
        self.assertEqual(len(labels), 4)
        with open(self.folder / "out/compare.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual([row["video"] for row in rows], ["all"] * 4 + ["0001"] * 4)
        self.assertAlmostEqual(float(rows[3]["ssim"]), result["methods"][3]["ssim"])
        self.assertIn("cpu", rows[0]["device"])
        dense, window = result["methods"][0], result["methods"][3]
        self.assertTrue(dense["identical"])
        self.assertIsNone(dense["psnr_db"])
        self.assertEqual((dense["ssim"], dense["speedup"]), (1, 1))
        self.assertFalse(window["identical"])
        self.assertEqual(dense["attention_density"], 1)
        for name in ("json", "csv", "md", "html"):
            self.assertNotIn("lpips", (self.folder / f"out/compare.{name}").read_text().lower())
        for key in ("device", "command", "seconds", "warnings", "model", "peak_memory"):
            self.assertIn(key, result)

    def test_density_error_and_recall(self):
        self.succeeds(self.compare(methods=f"neighborhood:window=2,2,3,{WINDOW}:dense_steps=1"))
        _, whole, window = self.result()["methods"]
        # 2x2x3 tokens, all of them: the window of each token is everything.
        self.assertEqual(whole["attention_density"], 1)
        # Of three steps the first is dense; then 3 tiles a frame of 4, 4 and 4, or what is cut off.
        self.assertLess(window["attention_density"], 0.6)
        self.assertGreater(window["attention_density"], 1 / 3)
        self.assertTrue(0 < window["attention_recall"] < 1)
        self.assertGreater(window["attention_error"], 1e-3)
        executors = self.result()["videos"][0]["methods"][2]["executors"]
        self.assertEqual(executors["self: dense on cpu"] * 2, executors["self: window on cpu"])

    def test_executors_by_name(self):
        self.succeeds(self.compare(
            methods=f"{WINDOW}:executor=reference,dense:executor=sdpa,dense"))
        labels = [method["method"] for method in self.result()["methods"]]
        self.assertEqual(labels[0], "dense executor=sdpa")
        self.assertEqual(labels[2], "dense")
        sdpa, window, dense = self.result()["videos"][0]["methods"]
        self.assertIn("self: dense on sdpa", sdpa["executors"])
        self.assertIn("self: window on reference", window["executors"])
        self.assertIn("self: dense on cpu", dense["executors"])
        self.assertGreater(self.result()["methods"][2]["worst_ssim"], 0.999)

    def test_numbers_are_those_of_the_frames(self):
        self.succeeds(self.compare(methods=WINDOW))
        frames = {}
        for name, options in (("dense", []), ("window", ["--attn", "tile=1,2,2", "--attn",
                                                         "window=1,1,1"])):
            common = ["generate", "--model", MODEL, "--prompt", "a red cube", *SMALL, "--quiet",
                      "--attention", name, *options]
            self.succeeds(run(*common, "--out", self.folder / f"{name}-%d.png"))
            self.succeeds(run(*common, "--out", self.folder / f"{name}.mp4"))
            frames[name] = numpy.stack([
                numpy.asarray(Image.open(self.folder / f"{name}-{i}.png"), dtype=numpy.float64)
                for i in range(5)])
        error = ((frames["window"] - frames["dense"]) ** 2).mean(axis=(1, 2, 3))
        result = self.result()
        self.assertAlmostEqual(result["methods"][1]["psnr_db"],
                               10 * numpy.log10(255**2 / error.mean()), places=6)
        self.assertAlmostEqual(result["methods"][1]["worst_psnr_db"],
                               10 * numpy.log10(255**2 / error.max()), places=6)
        single = result["videos"][0]["methods"][1]
        for psnr, squared in zip(single["frame_psnr_db"], error):
            self.assertAlmostEqual(psnr, 10 * numpy.log10(255**2 / squared), places=6)
        self.assertAlmostEqual(numpy.mean(single["frame_ssim"]), result["methods"][1]["ssim"])
        # Each method's video is the one that `generate` writes.
        for name, file in (("dense", "0001-dense.mp4"), ("window", single["file"])):
            self.assertEqual((self.folder / "out" / file).read_bytes(),
                             (self.folder / f"{name}.mp4").read_bytes())

    def test_pictures(self):
        self.succeeds(self.compare())
        code, out, error = run("inspect", "--json", self.folder / "out/0001.mp4")
        self.assertEqual(code, 0, error)
        video = json.loads(out)
        self.assertEqual((video["width"], video["height"]), (4 * 48 + 3 * 4, 32 + 40))
        self.assertEqual(video["num_frames"], 5)
        sheet = numpy.asarray(Image.open(self.folder / "out/0001-sheet.png").convert("RGB"))
        # A row a method, a column a frame; frame 0 of dense is its video's.
        first = numpy.asarray(sheet[54:54 + 32, -12 - 5 * 48 - 4 * 4:][:, :48], dtype=float)
        self.succeeds(run("generate", "--model", MODEL, "--prompt", "a red cube", *SMALL, "--quiet",
                          "--out", self.folder / "%d.png"))
        frame = numpy.asarray(Image.open(self.folder / "0.png"), dtype=float)
        self.assertEqual(numpy.abs(first - frame).max(), 0)

    def test_page_needs_nothing_else(self):
        prompt = "<script>alert(1)</script> & \"red\""
        self.succeeds(self.compare(prompt=prompt))
        text = (self.folder / "out/compare.html").read_text()
        page = PageReader()
        page.feed(text)
        self.assertEqual(page.open, [])
        self.assertIn(prompt, page.text)
        self.assertEqual(page.count["script"], 1)
        self.assertEqual(page.count["video"], 4)
        self.assertEqual(page.count["tr"], 5)
        self.assertEqual(page.count["svg"], 4)
        self.assertTrue(all(source.startswith("data:") for source in page.sources), page.sources)
        self.assertEqual(len(page.sources), 5)
        for word in ("http://", "https://", "@import", "url("):
            self.assertNotIn(word, text)

    def test_executors(self):
        for name, expected in (("checked", "checked:cpu"), ("checked:cpu", "checked:cpu"),
                               ("reference", "reference")):
            self.succeeds(self.compare("--executor", name, methods=WINDOW))
            for method in self.result()["videos"][0]["methods"]:
                used = {kind.split(" on ")[1] for kind in method["executors"]}
                self.assertEqual(used, {expected})
            shutil.rmtree(self.folder / "out")
        self.fails(self.compare("--executor", "abacus"), 2, "'abacus'", "known: auto, checked, ")

    def test_prompt_list(self):
        lines = [{"prompt": "a red cube"}, {"prompt": "a cone", "seed": 9, "out": "cone.mp4"}]
        (self.folder / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
        self.succeeds(self.compare("--prompts", self.folder / "list.jsonl", prompt=None,
                                   methods="window"))
        result = self.result()
        self.assertEqual([video["name"] for video in result["videos"]], ["0001", "cone"])
        self.assertEqual(result["videos"][1]["settings"]["seed"], 9)
        self.assertTrue((self.folder / "out/cone-sheet.png").exists())


class Lpips(Case):
    def setUp(self):
        super().setUp()
        weights = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, weights, ignore_errors=True)
        torch.manual_seed(4)
        self.tensors, self.file = random_tensors(ALEX), weights / "alex.safetensors"
        save_file(self.tensors, self.file)

    def frames(self, *options):
        self.succeeds(run("generate", "--model", MODEL, "--prompt", "a red cube", *SMALL, "--quiet",
                          *options, "--out", self.folder / "f%d.png"))
        files = [self.folder / f"f{i}.png" for i in range(5)]
        out = [torch.tensor(numpy.asarray(Image.open(file))) for file in files]
        for file in files:
            file.unlink()
        return out

    def test_is_that_of_the_frames(self):
        _, out, _ = self.succeeds(self.compare("--lpips", self.file, methods=WINDOW))
        pairs = zip(self.frames(), self.frames("--attention", "window", "--attn", "tile=1,2,2",
                                               "--attn", "window=1,1,1"))
        expected = [lpips(ALEX, self.tensors, dense, window) for dense, window in pairs]
        self.assertGreater(min(expected), 1e-4)
        result = self.result()
        self.assertEqual(result["lpips"]["network"], "alexnet")
        self.assertEqual(len(result["lpips"]["sha256"]), 64)
        dense, window = result["methods"]
        self.assertEqual((dense["lpips"], dense["worst_lpips"]), (0, 0))
        got = result["videos"][0]["methods"][1]["frame_lpips"]
        self.assertEqual(len(got), len(expected))
        for value, wanted in zip([*got, window["lpips"], window["worst_lpips"]],
                                 [*expected, numpy.mean(expected), max(expected)]):
            self.assertAlmostEqual(value / wanted, 1, places=4)
        with open(self.folder / "out/compare.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(float(rows[1]["lpips"]), window["lpips"])
        self.assertEqual(float(rows[3]["worst_lpips"]), window["worst_lpips"])
        head, rule, _, row = (line.split("|") for line in out.splitlines()[:4])
        self.assertEqual(len({len(head), len(rule), len(row)}), 1)
        self.assertEqual(row[head.index(" LPIPS ")].strip(), f"{window['lpips']:.4f}")
        page = PageReader()
        page.feed((self.folder / "out/compare.html").read_text())
        self.assertEqual(page.open, [])
        self.assertEqual((page.count["svg"], page.count["th"] * 2), (5, page.count["td"]))
        self.assertIn("LPIPS of each frame", page.text)

    def test_files_that_are_refused(self):
        def without(name):
            return {key: value for key, value in self.tensors.items() if key != name}

        squeezed = {key: value for key, value in self.tensors.items() if "slice1" in key}
        for tensors, *words in (
            (without("lin2.model.1.weight"), "1 missing tensor", "lin2.model.1.weight"),
            ({**self.tensors, "net.slice3.6.bias": torch.zeros(7)}, "net.slice3.6.bias", "shape"),
            (squeezed, "holds no network"),
        ):
            save_file(tensors, self.file)
            self.fails(self.compare("--lpips", self.file), 3, "alex.safetensors", *words)
        save_file({**self.tensors, "net.slice1.0.bias": torch.full([64], torch.nan)}, self.file)
        self.fails(self.compare("--lpips", self.file), 5, "net.slice1.0.bias", "NaN")
        self.file.write_bytes(b"<!doctype html>" * 9)
        self.fails(self.compare("--lpips", self.file), 3, "alex.safetensors")
        self.fails(self.compare("--lpips", self.file.parent / "none"), 3, "none", "no such file")
        save_file(self.tensors, self.file)
        self.fails(self.compare("--lpips", self.file, "--height", "16"), 2, "--lpips", "31x31",
                   "48x16")


class Refused(Case):
    def test_bad_methods(self):
        for methods, word in (
            ("fast", "fast"),
            ("topk:densty=0.5", "'densty'; known: block_kv, block_q, dense_layers"),
            ("window,svg2:density=0.5", "attention svg2: unknown option 'density'; known: "),
            ("topk:density=2", "density"),
            ("topk:density", "KEY=VALUE"),
            ("dense", "beside dense"),
            ("topk,topk", "twice"),
            ("topk,,radial", "no name"),
            ("dense:executor=gpu,topk", "gpu"),
            ("topk:density=0.5,radiall", "radiall"),
        ):
            self.fails(self.compare(methods=methods), 2, word)
        self.fails(self.compare(methods="topk:executor=sdpa"), 6, "topk", "sdpa")

    def test_bad_requests(self):
        self.fails(self.compare(prompt=None), 2, "--prompt")
        self.fails(self.compare("--num-frames", "6"), 2, "--num-frames")
        self.fails(self.compare("--attention", "topk"), 2, "--attention")
        self.fails(self.compare("--model", self.folder / "none"), 3, "none")

    def test_output_that_exists(self):
        (self.folder / "out").mkdir()
        (self.folder / "out/mine").write_text("kept")
        self.fails(self.compare(), 7, "out", left=["out"])
        self.assertEqual(os.listdir(self.folder / "out"), ["mine"])

    def test_options_that_do_not_fit_the_grid(self):
        # Known only when the first plan is made, after dense has run.
        self.fails(self.compare(methods="neighborhood:window=2,2,2:dilation=9,9,9"), 2, "window")

    def test_signals_leave_nothing(self):
        for stage in ("denoise", "decode"):
            command = [PROGRAM, "compare", "--model", MODEL, "--prompt", "x", "--methods", "window",
                       "--json", "--out", self.folder / "out", *SMALL, "--steps", "60"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for line in process.stdout:
                event = json.loads(line)
                if event.get("stage") == stage and event.get("total", 0) != 1:
                    break
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=30)
            if process.returncode == 0:  # it was over before
                shutil.rmtree(self.folder / "out")
                continue
            self.fails((process.returncode, "", error.decode()), 130, "interrupted")


if __name__ == "__main__":
    unittest.main()
