#!/usr/bin/env python3
"""summarize.py RESULTS.xml STATUS: prints each test of a ctest run that failed or was skipped, and
"N passed, N failed, N skipped" as the last line.

STATUS is the exit status of ctest. The exit code is 0 only when at least one test passed and none
failed; a run whose results are missing or contradict STATUS counts one failure.
"""

import re
import sys
import xml.etree.ElementTree as ElementTree

# XML 1.0 has no way to write these; programs under test may print them.
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
MAX_OUTPUT_LINES = 60


def verdict(case):
    """"passed", "failed" or "skipped", and why."""
    skipped = case.find("skipped")
    if case.find("failure") is not None:
        return "failed", case.find("failure").get("message", "")
    if case.get("status") == "run":
        return "passed", ""
    message = skipped.get("message", "") if skipped is not None else ""
    # ctest marks tests that asked to be skipped; every other test that did not run is a failure,
    # such as one whose program is missing or whose fixture failed.
    if case.get("status") == "disabled" or message.startswith("SKIP_"):
        return "skipped", message
    return "failed", message or "did not run"


def output_of(case):
    text = case.findtext("system-out") or ""
    lines = text.strip().splitlines()
    if len(lines) > MAX_OUTPUT_LINES:
        lines = [f"... {len(lines) - MAX_OUTPUT_LINES} lines ..."] + lines[-MAX_OUTPUT_LINES:]
    return lines


def why_skipped(case):
    """What GoogleTest prints below "FILE:LINE: Skipped"; of other programs the last line."""
    lines = output_of(case)
    for line, below in zip(lines, lines[1:]):
        if line.endswith(": Skipped"):
            return below
    return lines[-1] if lines else ""


def read_cases(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return ElementTree.fromstring(FORBIDDEN.sub("?", file.read())).iter("testcase")


def main(path, status):
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    try:
        cases = list(read_cases(path))
    except (OSError, ElementTree.ParseError) as error:
        print(f"FAILED: no results of ctest (exit status {status}): {error}")
        cases = []
        counts["failed"] = 1
    for case in cases:
        result, reason = verdict(case)
        counts[result] += 1
        if result == "failed":
            print(f"\nFAILED: {case.get('name')}: {reason}")
            print("\n".join("    " + line for line in output_of(case)))
        elif result == "skipped":
            print(f"skipped: {case.get('name')}: {why_skipped(case) or reason}")
    if status != 0 and counts["failed"] == 0:
        print(f"FAILED: ctest ended with status {status}")
        counts["failed"] = 1
    print("{passed} passed, {failed} failed, {skipped} skipped".format(**counts))
    return 0 if counts["passed"] > 0 and counts["failed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
