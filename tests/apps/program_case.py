"""What tests of the program share: running it, and how a run ends."""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

PROGRAM = os.environ.get("FOVEA_PROGRAM", "build/bin/fovea")
SOURCE = pathlib.Path(os.environ.get("FOVEA_SOURCE_DIR", "."))


def run(*arguments, **options):
    """Runs the program; returns (exit code, standard output, standard error)."""
    command = [PROGRAM, *map(os.fsencode, map(os.fspath, arguments))]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False, **options)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class ProgramCase(unittest.TestCase):
    def succeeds(self, result):
        self.assertEqual(result[0], 0, result[2])
        return result

    def fails(self, result, code, *words):
        """One error line with the code and the words."""
        self.assertEqual(result[0], code, result[2])
        lines = [line for line in result[2].splitlines() if line.startswith("error: ")]
        self.assertEqual(len(lines), 1, result[2])
        self.assertTrue(lines[0].startswith(f"error: {code}: "), lines[0])
        for word in words:
            self.assertIn(word, lines[0])
        self.assertLessEqual(len(result[2].splitlines()), 20)


class FolderCase(ProgramCase):
    """With a folder for outputs."""

    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def fails(self, result, code, *words, left=()):
        """As always, and nothing in the folder but `left`."""
        super().fails(result, code, *words)
        self.assertEqual(sorted(os.listdir(self.folder)), sorted(left))
