#!/usr/bin/env python3
"""`fovea train` with two processes on the CPU, started as a launcher would, by variables.

Each method is one test; $FOVEA_PROGRAM is the program.
"""

import signal
import sys
import unittest

import numpy

sys.dont_write_bytecode = True
from train_rig import Case, master_weights, read_log, read_tensors, saved_weights, tiny_config


class Processes(Case):
    def both_stop(self, pair, signal_number):
        """As asked by the signal; the first one says so, and no other."""
        self.fails(self.result(pair[0])[0], 128 + signal_number, signal_number.name)
        code, _, error = self.result(pair[1])[0]
        self.assertEqual((code, error), (128 + signal_number, ""))

    def both_end(self, pair, code, *words):
        for process in pair:
            self.fails(self.result(process)[0], code, *words)

    def test_equal_one_process(self):
        for stage in ("autoencoder", "transformer"):
            config = tiny_config(stage, steps=4)
            config["data"]["buckets"][0]["batch"] = 4
            # In fp32 a gradient of 0 but for rounding moves its weight as far as any other.
            dtype = ["--dtype", "fp64" if stage == "autoencoder" else "fp32"]
            out = {count: self.folder / f"by-{count}" for count in (1, 2)}
            self.succeeds(self.train("--quiet", *dtype, config=config, out=out[1]))
            report = self.folder / f"{stage}.json"
            arguments = [*dtype, "--report", report]
            pair = self.start_pair(*arguments, configs=[config, config], out=out[2])
            texts = [self.succeeds(self.result(process)[0])[1] for process in pair]
            self.assertEqual((texts[1], report.exists()), ("", True))  # one of them speaks
            one, two = (master_weights(out[count], stage) for count in (1, 2))
            distance = numpy.linalg.norm(one - two) / numpy.linalg.norm(one)
            self.assertLessEqual(distance, 1e-6)
            self.assertEqual(set(self.files(out[1])), set(self.files(out[2])))
            for a, b in zip(read_log(out[1], stage), read_log(out[2], stage)):
                self.assertEqual(a["step"], b["step"])
                self.assertAlmostEqual(a.get("loss", 1) / b.get("loss", 1), 1, delta=1e-5)

    def test_share_of_the_batch(self):
        configs = [tiny_config("autoencoder", micro_batches=2)] * 2
        pair = self.start_pair(configs=configs)
        self.fails(self.result(pair[0])[0], 2, "'batch'", "2 processes")
        self.assertNotEqual(self.result(pair[1])[0][0], 0)
        self.assertFalse(self.out.exists())

    def test_different_configurations(self):
        configs = [tiny_config("autoencoder", seed=seed) for seed in (3, 4)]
        self.both_end(self.start_pair(configs=configs), 7, "configuration")
        self.assertFalse(self.out.exists())

    def test_one_is_killed(self):
        config = tiny_config("autoencoder", steps=10_000, checkpoint_every=1)
        for victim in (0, 1):
            pair = self.start_pair("--overwrite", configs=[config, config])
            self.assertIsNotNone(self.wait_for_step(pair[0], 2))
            pair[victim].kill()
            self.result(pair[victim])
            result, seconds = self.result(pair[1 - victim])
            self.fails(result, 6, "process")
            self.assertLess(seconds, 30)
            _, metadata = read_tensors(self.out / "training/autoencoder.safetensors")
            self.assertGreaterEqual(int(metadata["step"]), 1)

    def test_signal_and_resume(self):
        steps = 90  # not all done by the time that a busy machine sends a signal
        config = tiny_config("autoencoder", steps=steps)
        whole = self.folder / "whole"
        pair = self.start_pair(configs=[config, config], out=whole)
        for process in pair:
            self.succeeds(self.result(process)[0])
        pair = self.start_pair(configs=[config, config])
        step = self.wait_for_step(pair[0], 2)
        for process in pair:
            process.send_signal(signal.SIGTERM)
        self.both_stop(pair, signal.SIGTERM)
        _, metadata = read_tensors(self.out / "training/autoencoder.safetensors")
        self.assertGreaterEqual(int(metadata["step"]), step)
        self.assertLess(int(metadata["step"]), steps)
        for process in self.start_pair("--resume", configs=[config, config]):
            self.succeeds(self.result(process)[0])
        self.assertEqual(
            saved_weights(self.out, "autoencoder"), saved_weights(whole, "autoencoder")
        )

    def test_signal_while_one_waits_for_the_other(self):
        config = tiny_config("autoencoder")
        config["data"]["buckets"][0] |= {"width": 64, "height": 64, "frames": 33, "depth": 50}
        pair = self.start_pair(configs=[config, config])
        while '"done":1,' not in pair[0].stdout.readline():
            pass
        pair[1].send_signal(signal.SIGSTOP)  # in the middle of its clips
        while '"stage":"train"' not in pair[0].stdout.readline():
            pass
        pair[0].send_signal(signal.SIGINT)
        pair[1].send_signal(signal.SIGINT)
        pair[1].send_signal(signal.SIGCONT)
        self.both_stop(pair, signal.SIGINT)

    def test_variables(self):
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        config = tiny_config("autoencoder")
        self.fails(self.train(config=config, variables=place), 2, "MASTER_PORT")
        place |= {"MASTER_PORT": "29500", "RANK": "2"}
        self.fails(self.train(config=config, variables=place), 2, "RANK")
        self.assertFalse(self.out.exists())


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], "-v", *sys.argv[1:]])
