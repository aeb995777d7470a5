"""What tests of the program share: how a run ends."""

import unittest


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
