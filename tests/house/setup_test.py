#!/usr/bin/env python3
"""Runs cmake/setup.sh in a copied checkout on a pretended machine: a folder of small scripts stands
in for dpkg-query, apt-get, sudo, id, nproc and python3, and writes down how it was called."""

import os
import pathlib
import shutil
import stat
import subprocess
import tempfile
import time
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]

# Knows the packages listed in $MACHINE/installed.
DPKG_QUERY = """
for name in "${@:4}"; do grep -qx -e "$name" "$MACHINE/installed" && echo "ii $name:amd64"; done
exit 1
"""
APT_GET = """
echo "apt-get $*" >>"$MACHINE/calls"
[ ! -e "$MACHINE/no-network" ] || { echo "E: no network" >&2; exit 100; }
[[ " $* " != *" install "* ]] || printf '%s\\n' "${@:7}" >>"$MACHINE/installed"
"""
SUDO = """
echo "sudo $*" >>"$MACHINE/calls"
while [[ $1 == -* ]]; do shift; done
exec "$@"
"""
# `-m venv DIR` makes DIR/bin/python3 a copy of itself; `-m pip` notes what it was asked for.
PYTHON = """
echo "python3 $*" >>"$MACHINE/calls"
case "$1 $2" in
  "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python3" ;;
  "-m pip") [ ! -e "$MACHINE/no-network" ] || exit 1
            [ ! -e "$MACHINE/kill-pip" ] || kill -KILL $PPID ;;
  "-c import pip") exit 0 ;;
  *) exit 1 ;;
esac
"""
CMAKE = 'echo "cmake version $(cat "$MACHINE/cmake-version")"'

REQUIRED = """g++ cmake ninja-build python3-venv nlohmann-json3-dev libcli11-dev libstb-dev
libutf8proc-dev""".split()
OPTIONAL = """pkg-config ccache mold libavformat-dev libavcodec-dev libavutil-dev libswscale-dev
libavfilter-dev libgloo-dev""".split()
TESTS = ["libgtest-dev", "libgmock-dev"]


class SetupTest(unittest.TestCase):
    def setUp(self):
        self.base = pathlib.Path(tempfile.mkdtemp(prefix="fovea set up "))
        self.addCleanup(shutil.rmtree, self.base)
        self.root = self.base / "a checkout"
        (self.root / "cmake").mkdir(parents=True)
        shutil.copy(SOURCE / "cmake/setup.sh", self.root / "cmake")
        self.machine = self.base / "machine"
        (self.machine / "bin").mkdir(parents=True)
        for name, text in (("dpkg-query", DPKG_QUERY), ("apt-get", APT_GET), ("sudo", SUDO),
                           ("python3", PYTHON), ("cmake", CMAKE), ("nvcc", "exit 0"),
                           ("id", 'cat "$MACHINE/uid"')):
            self.add_program(name, text)
        self.set("installed", "\n".join(REQUIRED + OPTIONAL) + "\n")
        self.set("cmake-version", "3.25.1")
        self.set("uid", "0")
        self.set("calls", "")

    def add_program(self, name, text):
        path = self.machine / "bin" / name
        path.write_text("#!/bin/bash\n" + text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def set(self, name, text=""):
        (self.machine / name).write_text(text)

    def calls(self, word):
        text = (self.machine / "calls").read_text()
        return [line for line in text.splitlines() if word in line]

    def run_setup(self, *arguments, home=True, **environment):
        path = f"{self.machine}/bin:/usr/bin:/bin"
        env = {"PATH": path, "MACHINE": str(self.machine), **environment}
        if home:
            env["HOME"] = str(self.base)
        return subprocess.run(["bash", self.root / "cmake/setup.sh", *arguments], env=env, cwd="/",
                              text=True, capture_output=True, check=False, stdin=subprocess.DEVNULL)

    def assert_ready(self, done):
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(done.stdout.splitlines()[-1], "setup: everything is there")

    def test_installs_what_is_missing_and_then_nothing(self):
        self.set("installed", "g++\ncmake\n")
        done = self.run_setup()
        self.assert_ready(done)
        self.assertEqual(len(self.calls("apt-get")), 2)  # update, install
        install = self.calls("install -y")[0]
        self.assertIn("--no-install-recommends ninja-build python3-venv", install)
        self.assertNotIn(" g++", install)
        self.assertEqual(len(self.calls("pip install")), 1)
        self.assertIn("torch==2.11.0", self.calls("pip install")[0])

        self.set("calls")
        self.set("no-network")
        start = time.monotonic()
        self.assert_ready(self.run_setup())
        self.assertEqual((self.calls("apt-get"), self.calls("python3")), ([], []))
        print(f"second run: {time.monotonic() - start:.3f} s")

    def test_tests_add_golden_packages_and_googletest(self):
        self.assert_ready(self.run_setup())
        self.assert_ready(self.run_setup("--tests"))
        self.assertTrue(self.calls("install -y")[0].endswith(" ".join(TESTS)))
        specs = [line for line in self.calls("pip install") if "diffusers==0.42.1" in line]
        self.assertEqual(len(specs), 1)
        self.assertEqual(len(self.calls("torch==2.11.0")), 1)
        self.set("calls")
        self.assert_ready(self.run_setup("--tests"))
        self.assertEqual(self.calls("python3") + self.calls("apt-get"), [])

    def test_home_may_be_unset(self):
        self.assert_ready(self.run_setup(home=False))

    def test_users_go_through_sudo(self):
        self.set("uid", "1000")
        self.set("installed", "")
        self.assert_ready(self.run_setup())
        self.assertEqual(len(self.calls("sudo -n env")), 2)

    def test_without_network_the_missing_package_is_named(self):
        self.set("installed", "\n".join(REQUIRED[1:] + OPTIONAL) + "\n")
        self.set("no-network")
        done = self.run_setup()
        self.assertEqual(done.returncode, 4)
        self.assertIn("error: 4: apt-get: cannot install g++; ", done.stderr)

    def test_optional_packages_may_be_missing(self):
        self.assert_ready(self.run_setup())
        self.set("installed", "\n".join(REQUIRED) + "\n")
        self.set("no-network")
        done = self.run_setup()
        self.assert_ready(done)
        self.assertIn("going on without pkg-config ccache mold", done.stdout)

    def test_gloo_is_optional_but_for_tests(self):
        self.assert_ready(self.run_setup())
        packages = REQUIRED + [name for name in OPTIONAL if name != "libgloo-dev"] + TESTS
        self.set("installed", "\n".join(packages) + "\n")
        self.set("no-network")
        self.assert_ready(self.run_setup())
        done = self.run_setup("--tests")
        self.assertEqual(done.returncode, 4)
        self.assertIn("installing Debian packages: libgloo-dev\n", done.stdout)
        self.assertIn("error: 4: apt-get: cannot install libgloo-dev; ", done.stderr)

    def test_interrupted_pip_starts_again(self):
        self.set("kill-pip")
        done = self.run_setup()
        self.assertNotEqual(done.returncode, 0)
        (self.machine / "kill-pip").unlink()
        marker = self.root / ".venv/half-unpacked"
        marker.write_text("")
        done = self.run_setup()
        self.assert_ready(done)
        self.assertIn("was interrupted", done.stdout)
        self.assertFalse(marker.exists())

    def test_failed_pip_is_no_complete_venv(self):
        self.set("no-network")
        done = self.run_setup()
        self.assertEqual(done.returncode, 4)
        self.assertIn("error: 4: .venv: pip could not install torch==2.11.0", done.stderr)
        (self.machine / "no-network").unlink()
        self.assert_ready(self.run_setup())

    def test_own_libtorch_skips_torch(self):
        own = self.base / "own torch"
        own.mkdir()
        self.assert_ready(self.run_setup(FOVEA_LIBTORCH=str(own)))
        self.assertEqual(self.calls("python3"), [])
        self.assertFalse((self.root / ".venv").exists())

    def test_own_libtorch_must_exist(self):
        done = self.run_setup(FOVEA_LIBTORCH="/nonexistent/torch")
        self.assertEqual(done.returncode, 2)
        self.assertIn("error: 2: FOVEA_LIBTORCH: no such folder", done.stderr)

    def test_nvcc_wheels_where_a_gpu_is_and_nvcc_is_not(self):
        if shutil.which("nvcc", path="/usr/bin:/bin"):
            self.skipTest("nvcc is in /usr/bin")
        (self.machine / "bin/nvcc").unlink()
        self.add_program("nvidia-smi", "exit 0")
        self.assert_ready(self.run_setup(CUDA_HOME="/nonexistent"))
        self.assertEqual(len(self.calls("nvidia-cuda-nvcc==13.0.88")), 1)

    def test_old_cmake_in_path_is_passed_over(self):
        self.set("cmake-version", "3.10.2")
        done = self.run_setup()
        found = subprocess.run(["/usr/bin/cmake", "--version"], capture_output=True, check=False) \
            if os.path.exists("/usr/bin/cmake") else None
        if found is None or found.returncode != 0:
            self.assertIn("error: 4: cmake: need version 3.25", done.stderr)
        else:
            self.assert_ready(done)

    def test_unknown_option(self):
        done = self.run_setup("--fast")
        self.assertEqual(done.returncode, 2)
        self.assertIn("error: 2: --fast: ", done.stderr)


if __name__ == "__main__":
    unittest.main()
