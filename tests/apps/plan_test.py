#!/usr/bin/env python3
"""`fovea plan`: tables and pictures of plans."""

import json
import sys
import unittest

import numpy
from PIL import Image

sys.dont_write_bytecode = True
from program_case import SOURCE, FolderCase, run

MODEL = SOURCE / "assets/models/tiny-random"
EXACT, SKIP = (36, 99, 235), (228, 232, 238)


class Case(FolderCase):
    def plan(self, *arguments):
        return run("plan", "--threads", "1", *arguments)

    def table(self, *arguments):
        return json.loads(self.succeeds(self.plan("--json", *arguments))[1])


class Plan(Case):
    def test_window_by_hand(self):
        # Three tiles in a row, each sees itself and its neighbour; text sees and is seen by all.
        table = self.table("--attention", "window", "--attn", "tile=1,2,2", "--attn",
                           "window=1,1,1", "--grid", "1x2x6", "--text-len", "4")
        self.assertEqual(len(table["head_classes"]), 1)
        heads = table["head_classes"][0]
        self.assertEqual(heads["heads"], list(range(8)))
        self.assertEqual((heads["q_blocks"], heads["kv_blocks"], heads["exact_blocks"]), (4, 4, 10))
        self.assertAlmostEqual(table["density"], 10 / 16)
        self.assertEqual((heads["least_row_density"], heads["most_row_density"]), (0.5, 1))

    def test_picture_shows_the_blocks(self):
        out = self.folder / "plan.png"
        self.succeeds(self.plan("--attention", "window", "--attn", "tile=1,2,2", "--attn",
                                "window=1,1,1", "--grid", "1x2x6", "--out", out))
        pixels = numpy.asarray(Image.open(out).convert("RGB"))
        exact = (pixels == EXACT).all(axis=2).sum()
        skip = (pixels == SKIP).all(axis=2).sum()
        # Blocks of 146 pixels: three on the diagonal, six beside it; the legend has one of each.
        self.assertGreater(exact, 3 * 140 * 140)
        self.assertAlmostEqual(skip / exact, 2, delta=0.05)
        self.assertEqual(json.loads(Image.open(out).text["Comment"])["layout"], "grid 1x2x6")

    def test_heads_with_other_maps_have_their_own_panels(self):
        arguments = ["--attention", "topk", "--attn", "density=0.25", "--grid", "2x32x32",
                     "--heads", "3"]
        table = self.table(*arguments)
        self.assertEqual([row["heads"] for row in table["head_classes"]], [[0], [1], [2]])
        self.assertAlmostEqual(table["density"], 0.25)
        self.assertEqual(table, self.table(*arguments))
        self.succeeds(self.plan(*arguments, "--out", self.folder / "a.png"))
        self.succeeds(self.plan(*arguments, "--seed", "1", "--out", self.folder / "b.png"))
        self.assertNotEqual((self.folder / "a.png").read_bytes(),
                            (self.folder / "b.png").read_bytes())

    def test_predicates_leave_parts_of_blocks(self):
        table = self.table("--attention", "neighborhood", "--attn", "window=1,1,1", "--grid",
                           "1x1x256")
        heads = table["head_classes"][0]
        self.assertEqual((heads["exact_blocks"], heads["partial_blocks"]), (2, 2))
        self.assertAlmostEqual(heads["density"], 0.5)

    def test_shape_of_a_model(self):
        size = ["--num-frames", "9", "--height", "64", "--width", "96"]
        table = self.table("--model", MODEL, "--attention", "dense", *size)
        self.assertEqual(table["layout"], "grid 3x4x6")
        self.assertEqual(table["density"], 1)

    def test_a_step_of_a_generation(self):
        arguments = ["--model", MODEL, "--prompt", "a red cube", "--num-frames", "5", "--height",
                     "64", "--width", "96", "--steps", "3", "--attention", "topk", "--attn",
                     "density=0.4", "--attn", "block_q=16", "--attn", "block_kv=16", "--attn",
                     "dense_steps=1"]
        first, last = (self.table(*arguments, "--step", step, "--layer", "1") for step in "02")
        self.assertEqual((first["density"], first["plan"].split(":")[0]), (1, "dense"))
        self.assertLess(last["density"], 0.6)
        self.assertIn("step 2 of 3, layer 1", last["source"])
        self.fails(self.plan(*arguments, "--step", "3"), 2, "--step")
        self.fails(self.plan(*arguments, "--layer", "99"), 2, "--layer")

    def test_executors_make_the_same_plan(self):
        arguments = ["--model", MODEL, "--prompt", "a red cube", "--num-frames", "5", "--height",
                     "64", "--width", "96", "--steps", "2", "--step", "1", "--attention", "radial"]
        first = self.table(*arguments)
        for name in ("checked", "checked:cpu", "reference"):
            self.assertEqual(first, self.table(*arguments, "--executor", name))

    def test_bad_input(self):
        for arguments, code, word in (
            ([], 2, "--grid"),
            (["--grid", "4x4"], 2, "FRAMESxHEIGHTxWIDTH"),
            (["--grid", "0x4x4"], 2, "--grid"),
            (["--grid", "99999x99999x99999"], 2, "tokens"),
            (["--grid", "999x999x999"], 4, "tokens"),
            (["--grid", "4x4x4", "--heads", "-1"], 2, "--heads"),
            (["--grid", "4x4x4", "--attention", "fast"], 2, "fast"),
            (["--grid", "4x4x4", "--out", self.folder / "a.jpg"], 2, ".png"),
            (["--grid", "4x4x4", "--out", self.folder / "none/a.png"], 2, "none"),
            (["--grid", "4x4x4", "--prompt", "x"], 2, "--model"),
            (["--model", MODEL, "--height", "50"], 2, "--height"),
            (["--grid", "4x4x4", "--attention", "radial", "--attn", "density=0.5"], 2,
             "unknown option 'density'; known: block, decay, dense_layers, dense_steps, sink_"),
            (["--grid", "4x4x4", "--executor", "abacus"], 2, "known: auto, checked, "),
            (["--model", MODEL, "--prompt", "x", "--executor", "checked:x"], 2, "'checked:x'"),
        ):
            self.fails(self.plan(*arguments), code, word)


class Saved(Case):
    """Plans in a folder, and generations from them."""

    SIZE = ["--num-frames", "5", "--height", "64", "--width", "96", "--seed", "3"]
    REQUEST = ["--model", MODEL, "--prompt", "a red cube", "--steps", "3", *SIZE]
    TOPK = ["--attention", "topk", "--attn", "density=0.3", "--attn", "block_q=16", "--attn",
            "block_kv=16", "--attn", "dense_steps=1"]

    def generate(self, *arguments, model=MODEL, size=SIZE):
        out = self.folder / "out.safetensors"
        result = run("generate", "--threads", "1", "--quiet", "--model", model, "--prompt",
                     "a red cube", "--steps", "3", *size, *arguments, "--save-latents", out,
                     "--out", self.folder / "out-%d.png")
        latents = out.read_bytes() if out.exists() else None
        for file in self.folder.glob("out*"):
            file.unlink()
        return latents, result

    def latents(self, *arguments, **options):
        latents, result = self.generate(*arguments, **options)
        self.succeeds(result)
        return latents

    def save(self, *arguments):
        self.succeeds(self.plan(*arguments, "--save", self.folder / "plans"))
        return ["--attention", "saved", "--attn", f"file={self.folder / 'plans'}"]

    def index(self):
        return json.loads((self.folder / "plans/plan.json").read_text())

    def test_a_generation_from_its_plans(self):
        saved = self.save(*self.REQUEST, *self.TOPK, "--step", "2")
        index = self.index()
        self.assertEqual(index["recipe"], {"attention": "topk", "options": {
            "density": 0.3, "block_q": 16, "block_kv": 16, "dense_steps": 1}})
        # Two layers and two guidance branches in three steps, of which the first is dense.
        self.assertEqual(len(index["entries"]), 12)
        plans = [{entry["plan"] for entry in index["entries"] if entry["bucket"] == bucket}
                 for bucket in range(3)]
        self.assertEqual(len(plans[0]), 1)
        self.assertGreater(len(plans[1] | plans[2]), 1)
        self.assertFalse(plans[0] & (plans[1] | plans[2]))
        expected = self.latents(*self.TOPK)
        self.assertEqual(self.latents(*saved), expected)
        self.assertNotEqual(self.latents("--attention", "dense"), expected)

    def test_plans_of_geometry_need_no_prompt(self):
        radial = ["--attention", "radial", "--attn", "block=16", "--attn", "sink_frames=0"]
        saved = self.save("--model", MODEL, *self.SIZE, *radial)
        index = self.index()
        self.assertEqual((len(index["entries"]), len(index["plans"])), (2, 1))
        self.assertEqual(self.latents(*saved), self.latents(*radial))

    def test_other_sizes_and_models(self):
        saved = self.save(*self.REQUEST, *self.TOPK, "--step", "2")
        larger = ["--num-frames", "9", "--height", "80", "--width", "64"]
        self.fails(self.generate(*saved, size=larger)[1], 2, "made for grid 2x4x6",
                   "the call is of grid 3x5x4", left=["plans"])
        self.assertEqual(self.latents(*saved, "--attn", "replan=true", size=larger),
                         self.latents(*self.TOPK, size=larger))
        self.fails(self.generate(*saved, model=SOURCE / "assets/models/mini")[1], 2,
                   "of another model", left=["plans"])

    def test_folders_that_cannot_be_used(self):
        saved = self.save(*self.REQUEST, *self.TOPK, "--step", "0")
        self.fails(self.plan(*self.REQUEST, *self.TOPK, "--save", self.folder / "plans"), 7,
                   "plans", left=["plans"])
        self.fails(self.plan("--grid", "4x4x4", "--save", self.folder / "none/plans"), 2, "none",
                   left=["plans"])
        index = self.folder / "plans/plan.json"
        index.write_text(index.read_text()[:200])
        self.fails(self.generate(*saved)[1], 3, "plan.json", "malformed", left=["plans"])
        self.fails(self.generate("--attention", "saved")[1], 2, "'file'", left=["plans"])


class Presets(Case):
    def test_shipped_presets(self):
        presets = sorted((SOURCE / "assets/presets").glob("mini.*.json"))
        self.assertGreaterEqual(len(presets), 3)
        for preset in presets:
            method = preset.name.split(".")[1]
            table = self.table("--attention-preset", preset, "--model",
                               SOURCE / "assets/models/mini", "--num-frames", "49", "--height",
                               "256", "--width", "256", "--step", "10")
            self.assertEqual(table["attention"], method)
            self.assertTrue(table["plan"].startswith(f"{method}: "), table["plan"])
            self.assertLess(table["density"], 0.75, method)

    def test_options_come_after_the_preset(self):
        preset = SOURCE / "assets/presets/mini.topk.json"
        table = self.table("--attention-preset", preset, "--attn", "density=0.5", "--attn",
                           "dense_steps=0", "--grid", "4x16x16")
        self.assertAlmostEqual(table["density"], 0.5)
        self.assertEqual(table["attention_options"]["block_q"], 64)

    def test_bad_presets(self):
        preset = self.folder / "preset.json"
        for text, code, word in (
            ('{"attention": "topk", "options": {"density": 0.5}, "steps": 3}', 3, "'steps'"),
            ('{"attention": "topk", "options": {"densty": 0.5}}', 2, "'densty'"),
            ('{"attention": "fast"}', 2, "'fast'"),
            ('{"options": {}}', 3, "'attention'"),
            ('{"attention": "topk", "options": [1]}', 3, "'options'"),
            ('{"attention"', 3, "malformed"),
        ):
            preset.write_text(text)
            self.fails(self.plan("--attention-preset", preset, "--grid", "4x4x4"), code, word,
                       left=["preset.json"])
        preset.write_text('{"attention": "topk"}')
        self.fails(self.plan("--attention-preset", preset, "--attention", "topk", "--grid",
                             "4x4x4"), 2, "--attention", left=["preset.json"])
        self.fails(self.plan("--attention-preset", self.folder / "none.json", "--grid", "4x4x4"),
                   3, "none.json", left=["preset.json"])


if __name__ == "__main__":
    unittest.main()
