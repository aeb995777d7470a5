#!/usr/bin/env python3
"""Plants one violation at a time in a small tree and sees that the check of .ci/ names it."""

import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]

GOOD = {
    "kernels/ops/pool.h": "#pragma once\n#include <cstdint>\nint pool(const float* x, int n);\n",
    "core/check.h": "#pragma once\n#include <string>\n",
    "core/token_layout.h": '#pragma once\n#include <ATen/core/Tensor.h>\n#include "core/check.h"\n',
    "core/ops/pool.cpp": '#include "kernels/ops/pool.h"\n#include "core/check.h"\n',
    "core/attention/plan.h": '#pragma once\n#include "core/token_layout.h"\n',
    "core/attention/planner.h": '#pragma once\n#include "core/attention/plan.h"\n',
    "models/wan.cpp": '#include "core/attention/planner.h"\nint wan(int a) { return a; }\n',
    "pipelines/run.cpp": '#include "core/check.h"\n',
    "apps/main.cpp": '#include "pipelines/nothing.h"\nint main() { return 0; }\n',
    "README.md": "# Title\n",
}


class CheckTest(unittest.TestCase):
    check = ""

    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="fovea check "))
        self.addCleanup(shutil.rmtree, self.root)
        for name, text in GOOD.items():
            self.write(name, text)
        shutil.copy(SOURCE / ".clang-format", self.root)

    def write(self, name, text):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run_check(self):
        return subprocess.run([SOURCE / ".ci" / self.check, self.root], text=True,
                              capture_output=True, check=False)

    def assert_passes(self):
        done = self.run_check()
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def assert_fails(self, *texts):
        done = self.run_check()
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        for text in texts:
            self.assertIn(text, done.stdout)


class Layers(CheckTest):
    check = "check_layers"

    def test_good_tree_passes(self):
        self.assert_passes()

    def test_empty_tree_fails(self):
        for folder in ("kernels", "core", "models", "pipelines", "apps"):
            shutil.rmtree(self.root / folder)
        self.assert_fails("0 files")

    def test_torch_under_kernels(self):
        for header in ("torch/torch.h", "ATen/ATen.h", "c10/util/Half.h"):
            with self.subTest(header):
                self.write("kernels/a.cu", f"#  include <{header}>\n")
                self.assert_fails("kernels/a.cu:1", header)

    def test_torch_under_kernels_through_a_header(self):
        self.write("kernels/a.h", "#include <c10/util/Half.h>\n")
        self.write("kernels/b.cpp", '#include "a.h"\n')
        self.assert_fails("kernels/b.cpp")

    def test_comments_do_not_count(self):
        self.write("kernels/a.h", "// #include <ATen/ATen.h>\n/*\n#include <ATen/ATen.h>\n*/\n")
        self.assert_passes()

    def test_every_upward_include(self):
        layers = ["kernels", "core", "models", "pipelines", "apps"]
        for low, below in enumerate(layers):
            for above in layers[low + 1:]:
                with self.subTest(f"{below} includes {above}"):
                    name = f"{below}/check.cpp"
                    self.write(name, f'#include "{above}/x.h"\n')
                    self.assert_fails(f"{name}:1", "a layer above it")
                    (self.root / name).unlink()

    def test_order_inside_core(self):
        self.write("core/check.h", '#pragma once\n#include "core/token_layout.h"\n')
        self.write("core/token_layout.h", "#pragma once\n")
        self.assert_fails("core/check.h:2", "comes later")

    def test_order_inside_attention(self):
        self.write("core/attention/plan.h", '#include "core/attention/planner.h"\n')
        self.write("core/attention/planner.h", "#pragma once\n")
        self.assert_fails("core/attention/plan.h:1", "comes later")

    def test_new_file_in_core_must_be_placed(self):
        self.write("core/novelty.h", "#pragma once\n")
        self.assert_fails("core/novelty.h", "no place in the order")

    def test_cycle_of_files(self):
        self.write("models/a.h", '#include "models/b.h"\n')
        self.write("models/b.h", '#include "models/a.h"\n')
        self.assert_fails("models/a.h -> models/b.h -> models/a.h")

    def test_source_may_include_what_includes_its_header(self):
        self.write("models/a.h", "#pragma once\n")
        self.write("models/b.h", '#include "models/a.h"\n')
        self.write("models/a.cpp", '#include "models/b.h"\n')
        self.assert_passes()

    def test_cycle_of_folders(self):
        self.write("models/x/a.h", '#include "models/y/b.h"\n')
        self.write("models/y/b.h", "#pragma once\n")
        self.write("models/y/c.h", '#include "models/x/d.h"\n')
        self.write("models/x/d.h", "#pragma once\n")
        self.assert_fails("models/x -> models/y -> models/x")


class Budgets(CheckTest):
    check = "check_budgets"

    def test_good_tree_passes(self):
        self.assert_passes()

    def test_empty_tree_fails(self):
        for path in self.root.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.assert_fails("0 files")

    def test_file_lengths(self):
        for name, limit in (("core/a.cpp", 500), ("models/a.h", 500), ("kernels/a.cpp", 700),
                            ("core/a.cu", 700), ("tests/a_test.cpp", 700), ("cmake/a.sh", 500)):
            with self.subTest(name):
                self.write(name, "\n" * limit)
                self.assert_passes()
                self.write(name, "\n" * (limit + 1))
                self.assert_fails(f"{name}:1: {limit + 1} lines")
                (self.root / name).unlink()

    def function(self, head, lines):
        return head + " {\n" + "  f();\n" * (lines - 2) + "}\n"

    def test_function_lengths(self):
        heads = ("void Long::name()", "static std::map<int, int> name(int a)", "TEST(name, b)",
                 "name::name() : a_{1}, b_(2)", "const auto name = [&](int a) -> int",
                 "bool name(std::string_view x = \"{\") const noexcept",
                 "template <typename T, std::enable_if_t<(N > 3), int> = 0>\nvoid name(T x)")
        for head in heads:
            for inside in ("{}", "namespace x {{\nclass Y {{\n public:\n{}}};\n}}\n"):
                with self.subTest(head=head, inside=inside):
                    extra = head.count("\n")
                    self.write("core/ops/a.cpp", inside.format(self.function(head, 60 - extra)))
                    self.assert_passes()
                    self.write("core/ops/a.cpp", inside.format(self.function(head, 61 - extra)))
                    self.assert_fails("has 61 lines, 60 are allowed")

    def test_kernel_lengths(self):
        head = "__global__ void __launch_bounds__(128, 2) name(Parameters p)"
        self.write("kernels/a.cu", self.function(head, 250))
        self.assert_passes()
        self.write("kernels/a.cu", self.function(head, 251))
        self.assert_fails("name has 251 lines, 250 are allowed")

    def test_literals_do_not_end_a_function(self):
        body = "  a = '}'; b = \"}\\\"}\"; c = R\"x(}\")x\"; d = 1'000'000; // }\n  /* } */\n"
        self.write("core/ops/a.cpp", "void f() {\n" + body * 30 + "}\n")
        self.assert_fails("f has 62 lines")

    def test_parameters(self):
        seven = "int a, int b, M<int, int> c, D d = {1, 2}, E e = f(1, 2), int g"
        for form in ("void f({});\n", "struct S {{\n  S({});\n}};\n", "void f({}) {{\n}}\n",
                     "class A {{\n public:\n  virtual void f({}) const = 0;\n}};\n"):
            with self.subTest(form):
                self.write("core/ops/a.h", form.format(seven))
                self.assert_passes()
                self.write("core/ops/a.h", form.format(seven + ", int h"))
                self.assert_fails("has 7 parameters")

    def test_calls_may_have_many_arguments(self):
        self.write("core/ops/a.cpp", "const int x = f(1, 2, 3, 4, 5, 6, 7, 8);\n"
                   "void g() { h(1, 2, 3, 4, 5, 6, 7, 8); }\n")
        self.assert_passes()

    def test_columns(self):
        self.write("core/ops/a.h", "// " + "ü" * 97 + "\n")
        self.assert_passes()
        for name in ("core/ops/a.h", "tests/a.py", "demo.sh", "CMakeLists.txt"):
            with self.subTest(name):
                self.write(name, "#!" + "x" * 99 + "\n")
                self.assert_fails(f"{name}:1: 101 columns")
                (self.root / name).unlink()

    def test_readme(self):
        self.write("README.md", "\n" * 151)
        self.assert_fails("README.md:1: 151 lines")

    def test_assets(self):
        path = self.root / "assets" / "weights.safetensors"
        path.parent.mkdir()
        for size, check in ((44_000_000, self.assert_passes),
                            (44_000_001, lambda: self.assert_fails("44000001 bytes"))):
            with open(path, "wb") as file:
                file.truncate(size)
            check()


class Format(CheckTest):
    check = "check_format"

    def setUp(self):
        super().setUp()
        done = self.run_check()
        if done.returncode == 77:
            self.skipTest(done.stdout.strip())

    def test_good_tree_passes(self):
        self.assert_passes()

    def test_bad_format(self):
        self.write("core/ops/b.cpp", "int  f( ) {return 1;}\n")
        self.assert_fails("core/ops/b.cpp")

    def test_empty_tree_fails(self):
        for folder in ("kernels", "core", "models", "pipelines", "apps"):
            shutil.rmtree(self.root / folder)
        self.assert_fails("no C++ file")


class Kernels(CheckTest):
    """With a program that answers as cuobjdump does."""

    check = "check_kernels"
    name = "_ZN5fovea7kernels3runILi3EEEvPf"

    def setUp(self):
        super().setUp()
        self.write("build/kernels/CMakeFiles/k.dir/ops/pool.cu.o", "")
        self.answer()
        self.run_check("--write")

    def answer(self, registers=40, stack=0, waits=2):
        wait = "        /*0010*/  WARPGROUP.DEPBAR.LE gsb0, 0x0 ;\\n"
        program = self.root / "cuobjdump"
        program.write_text(f"""#!/usr/bin/env python3
import sys
print("arch = sm_90a")
if sys.argv[1] == "-sass":
    print("\\t\\tFunction : {self.name}\\n" + "{wait}" * {waits})
else:
    print(" Function {self.name}:")
    print("  REG:{registers} STACK:{stack} SHARED:0 LOCAL:0 CONSTANT[0]:968")
""", encoding="utf-8")
        program.chmod(0o755)

    def run_check(self, *arguments):
        return subprocess.run([SOURCE / ".ci" / self.check, self.root, "--cuobjdump",
                               self.root / "cuobjdump", *arguments], text=True,
                              capture_output=True, check=False)

    def test_what_the_table_says_passes(self):
        self.assert_passes()
        self.assertEqual((self.root / "kernels/resources.txt").read_text(),
                         "pool: run<3> | sm_90a | 40 | 0 | 2\n")

    def test_changes(self):
        for change in ({"registers": 41}, {"waits": 6}):
            with self.subTest(change):
                self.answer(**change)
                self.assert_fails("not in kernels/resources.txt: pool: run<3>",
                                  "only: pool: run<3> | sm_90a | 40 | 0 | 2")

    def test_spills_are_never_accepted(self):
        self.answer(stack=8)
        self.assertEqual(self.run_check("--write").returncode, 1)
        self.assert_fails("spills", "pool: run<3>")

    def test_kernels_that_went(self):
        self.write("build/kernels/CMakeFiles/k.dir/ops/other.cu.o", "")
        self.assert_fails("other: run<3>")
        (self.root / "kernels/resources.txt").write_text("gone | sm_80 | 1 | 0 | 0\n")
        self.assert_fails("only: gone")

    def test_nothing_to_check_is_no_success(self):
        shutil.rmtree(self.root / "build")
        self.assertEqual(self.run_check().returncode, 77)


class Summary(unittest.TestCase):
    """tests/summarize.py on made-up results."""

    CASE = '<testcase name="{}" status="{}">{}</testcase>'

    def summarize(self, cases, status):
        with tempfile.NamedTemporaryFile("w", suffix=".xml") as file:
            file.write("<testsuite>" + "".join(cases) + "</testsuite>")
            file.flush()
            return self.run_on(file.name, status)

    def run_on(self, path, status):
        done = subprocess.run([sys.executable, SOURCE / "tests/summarize.py", path, str(status)],
                              text=True, capture_output=True, check=False)
        return done.returncode, done.stdout.splitlines()

    def test_counts(self):
        cases = [self.CASE.format("a", "run", ""),
                 self.CASE.format("b", "fail", "<failure/><system-out>why</system-out>"),
                 self.CASE.format("c", "notrun", '<skipped message="SKIP_RETURN_CODE=77"/>'),
                 self.CASE.format("d", "notrun", '<skipped message="Unable to find it"/>')]
        code, lines = self.summarize(cases, 8)
        self.assertEqual((code, lines[-1]), (1, "1 passed, 2 failed, 1 skipped"))
        self.assertIn("    why", lines)
        self.assertIn("FAILED: d: Unable to find it", lines)

    def test_says_why_tests_were_skipped(self):
        printed = ("[ RUN      ] Gpu.Adds\n/a/b.cpp:3: Skipped\nmissing: a GPU\n\n"
                   "[  SKIPPED ] Gpu.Adds")
        skipped = '<skipped message="SKIP_REGULAR_EXPRESSION_MATCHED"/><system-out>{}</system-out>'
        cases = [self.CASE.format("a", "run", ""),
                 self.CASE.format("b", "notrun", skipped.format(printed)),
                 self.CASE.format("c", "notrun", skipped.format("no network"))]
        code, lines = self.summarize(cases, 0)
        self.assertEqual((code, lines[-1]), (0, "1 passed, 0 failed, 2 skipped"))
        self.assertIn("skipped: b: missing: a GPU", lines)
        self.assertIn("skipped: c: no network", lines)

    def test_all_passed(self):
        code, lines = self.summarize([self.CASE.format("a", "run", "")], 0)
        self.assertEqual((code, lines[-1]), (0, "1 passed, 0 failed, 0 skipped"))

    def test_none_ran(self):
        code, lines = self.summarize([], 0)
        self.assertEqual((code, lines[-1]), (1, "0 passed, 0 failed, 0 skipped"))

    def test_ctest_failed_without_a_failed_test(self):
        code, lines = self.summarize([self.CASE.format("a", "run", "")], 8)
        self.assertEqual((code, lines[-1]), (1, "1 passed, 1 failed, 0 skipped"))

    def test_no_results(self):
        code, lines = self.run_on("/nonexistent/results.xml", 8)
        self.assertEqual((code, lines[-1]), (1, "0 passed, 1 failed, 0 skipped"))


if __name__ == "__main__":
    unittest.main()
