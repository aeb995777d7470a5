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
        ):
            self.fails(self.plan(*arguments), code, word)


if __name__ == "__main__":
    unittest.main()
