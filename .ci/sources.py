"""What the checks share: the files of a tree, and C++ text without comments and literals."""

import os
import pathlib
import re
import subprocess

CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
SCRIPT_SUFFIXES = {".py", ".sh", ".cmake"}
SKIPPED_FOLDERS = re.compile(r"^(build.*|\.venv|\.cache|\.git|__pycache__)$")

# Comments, raw strings, strings, characters; digit separators (1'000) are matched to be left alone.
LITERAL = re.compile(
    r"//(?:\\\n|[^\n])*"
    r"|/\*.*?\*/"
    r'|(?:u8|[uUL])?R"([^()\\\s]{0,16})\(.*?\)\1"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|\b[0-9](?:[0-9a-zA-Z_.]|'[0-9a-zA-Z])*"
    r"|'(?:\\.|[^'\\\n])+'",
    re.DOTALL)


def list_files(root):
    """Files of the tree relative to `root`, as git sees them where it is a repository."""
    root = pathlib.Path(root)
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others",
                   "--exclude-standard"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode == 0:
            names = sorted(set(os.fsdecode(done.stdout).split("\0")) - {""})
            return [name for name in names if (root / name).is_file()]
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not SKIPPED_FOLDERS.match(name)]
        found += [os.path.relpath(os.path.join(folder, name), root) for name in files]
    return sorted(found)


def read(root, name):
    return (pathlib.Path(root) / name).read_text(encoding="utf-8", errors="replace")


def is_cpp(name):
    return pathlib.Path(name).suffix in CPP_SUFFIXES


def is_script(root, name):
    """Shell, Python and CMake files, also those named only by their first line."""
    path = pathlib.Path(name)
    if path.suffix in SCRIPT_SUFFIXES or path.name == "CMakeLists.txt":
        return True
    if path.suffix:
        return False
    with open(pathlib.Path(root) / name, "rb") as file:
        return file.read(2) == b"#!"


def without_literals(text):
    """The text with comments blank and literals replaced by quotes; every line stays in place."""

    def blank(match):
        found = match.group(0)
        if found[0].isdigit():
            return found
        kept = "" if found.startswith(("//", "/*")) else '""'
        return kept + "\n" * found.count("\n")

    return LITERAL.sub(blank, text)


def without_preprocessor(text):
    """The text with preprocessor lines (and their continuations) blank."""
    return re.sub(r"^[ \t]*#(?:\\\n|[^\n])*", lambda m: "\n" * m.group(0).count("\n"), text,
                  flags=re.MULTILINE)
