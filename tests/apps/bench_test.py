#!/usr/bin/env python3
"""`fovea bench attention`: its records, in three formats."""

import csv
import io
import json
import os
import sys
import unittest

sys.dont_write_bytecode = True
from program_case import FolderCase, run


class Case(FolderCase):
    def bench(self, *arguments, **options):
        return run("bench", "attention", "--threads", "1", "--heads", "2", "--head-dim", "32",
                   "--repeats", "3", "--quiet", *arguments, **options)


class Bench(Case):
    def test_every_combination_is_a_record(self):
        out = self.succeeds(self.bench(
            "--len", "128..256*2,100", "--grid", "1x4x40", "--dtype", "fp32,bf16", "--methods",
            "dense:executor=sdpa,topk:density=0.5|1:block_q=16:block_kv=16", "--format", "json"))[1]
        records = json.loads(out)
        self.assertEqual(len(records), 2 * 4 * 3)
        self.assertEqual(sorted({r["tokens"] for r in records}), [100, 128, 160, 256])
        self.assertEqual({r["dtype"] for r in records}, {"fp32", "bf16"})
        by_grid = {r["tokens"]: r["grid"] for r in records}
        self.assertEqual(by_grid, {160: "1x4x40", 128: "4x4x8", 256: "4x8x8", 100: "4x5x5"})
        for r in records:
            self.assertTrue(r["device"].startswith("cpu ("))
            self.assertTrue(0 < r["min_ms"] <= r["quartile1_ms"] <= r["median_ms"]
                            <= r["quartile3_ms"] <= r["max_ms"])
            self.assertGreater(r["sdpa_ms"], 0)
            self.assertEqual(r["repeats"], 3)
            once = r["method"].startswith("dense")
            self.assertEqual(r["planned_once"], once)
            call = r["median_ms"] + (0 if once else r["plan_ms"] + r["lower_ms"])
            self.assertAlmostEqual(r["speedup"], r["sdpa_ms"] / call)
            self.assertEqual((r["sdpa"], r["flash_ms"], r["peak_mb"]), ("sdpa", None, None))
            products = 4 * 2 * 32 * r["tokens"] ** 2
            self.assertAlmostEqual(r["dense_tflops"], products * 1e-9 / r["median_ms"])
            self.assertAlmostEqual(r["executed_tflops"], r["dense_tflops"] * r["density"])
        half = [r for r in records if "0.5" in r["method"] and r["tokens"] == 256]
        self.assertEqual([r["density"] for r in half], [0.5, 0.5])
        self.assertEqual(half[0]["executor"], "cpu")
        dense = [r["executor"] for r in records if r["method"] == "dense executor=sdpa"]
        self.assertEqual(dense, ["sdpa"] * 8)

    def test_shapes_executors_and_durations(self):
        out = self.succeeds(self.bench(
            "--shape", "1x96x16,3x70x64", "--plan", "dense", "--method", "topk:density=0.5",
            "--executor", "reference", "--method", "radial:executor=cpu", "--duration", "5",
            "--json"))[1]
        records = json.loads(out)
        self.assertEqual([(r["heads"], r["tokens"], r["head_dim"]) for r in records],
                         [(1, 96, 16)] * 3 + [(3, 70, 64)] * 3)
        self.assertEqual([r["executor"] for r in records], ["reference", "reference", "cpu"] * 2)
        self.assertTrue(all(r["plan_ms"] > 0 and r["lower_ms"] >= 0 for r in records))

    def test_formats_and_files(self):
        common = ["--len", "64", "--methods", "dense,radial"]
        text = self.succeeds(self.bench(*common))[1]
        self.assertIn("| radial | fp32 | 64 |", text)
        table = self.succeeds(self.bench(*common, "--format", "csv"))[1]
        rows = list(csv.DictReader(io.StringIO(table)))
        self.assertEqual([row["method"] for row in rows], ["dense", "radial"])
        self.assertEqual(rows[0]["density"], "1.0")
        out = self.folder / "bench.csv"
        self.succeeds(self.bench(*common, "--format", "csv", "--out", out))
        self.assertEqual(out.read_text().splitlines()[0], table.splitlines()[0])
        self.fails(self.bench(*common, "--out", out), 7, "bench.csv", left=["bench.csv"])

    def test_bad_input(self):
        for arguments, code, word in (
            (["--len", "0"], 2, "--len"),
            (["--len", "64..128"], 2, "FIRST..LAST"),
            (["--len", "64..128*1"], 2, "factor"),
            (["--len", "1..99999999+1"], 2, "--len"),
            (["--len", "99999999"], 4, "--len"),
            (["--grid", "3x3"], 2, "--grid"),
            (["--dtype", "int3"], 2, "int3"),
            (["--dtype", "fp32,"], 2, "--dtype"),
            (["--methods", "fast"], 2, "fast"),
            (["--repeats", "0"], 2, "--repeats"),
            (["--format", "xml"], 2, "--format"),
            (["--shape", "12x128"], 2, "--shape"),
            (["--shape", "0x128x64"], 2, "--shape"),
            (["--shape", "1x99999999x64"], 4, "--shape"),
            (["--shape", "9999x64x64"], 2, "--shape"),
            (["--shape", "1x64x64", "--len", "64"], 2, "--shape"),
            (["--executor", "abacus"], 2, "abacus"),
            (["--len", "64", "--executor", "sdpa", "--methods", "topk"], 6, "sdpa"),
            (["--duration", "1e9"], 2, "--duration"),
            (["--device", "tpu"], 2, "--device"),
            (["--len", "64", "--methods", "neighborhood:dilation=64,64,64"], 2, "window"),
        ):
            self.fails(self.bench(*arguments), code, word)
        self.fails(run("bench"), 2)

    def test_a_gpu_that_is_not_there(self):
        hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
        self.fails(self.bench("--len", "64", "--device", "cuda", env=hidden), 6, "no usable")


if __name__ == "__main__":
    unittest.main()
