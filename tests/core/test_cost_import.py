"""The first plan of a process, in an interpreter of its own: it must not pay for what torch imports on demand."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, sys
import gendr_core
from gendr_core.cli import main
main({arguments})
print(json.dumps(sorted(sys.modules)))
"""
PLANS = [
    pytest.param("128x128", "mini", [], id="mini"),
    pytest.param("128x128", "full", [], id="full"),
    pytest.param("700x500", "full", ["--dtype", "bf16"], id="in bands"),
    pytest.param("700x500", "full", ["--memory", "tiles", "--color", "lab"], id="tiles"),
]


@pytest.mark.parametrize(("size", "arch", "more"), PLANS)
def test_planning_imports_neither_the_compiler_nor_the_algebra_of_torch(size: str, arch: str, more: list[str]) -> None:
    arguments = ["plan", "--json", "--size", size, "--arch", arch, "--device", "cpu", "--budget", "12GiB", *more]
    program = PROGRAM.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *report, modules = done.stdout.splitlines()
    assert json.loads("\n".join(report))["peak_bytes"] > 0
    assert {"torch._dynamo", "sympy"}.isdisjoint(json.loads(modules))
