"""What ``import gendr_core`` adds to ``import torch``: fresh interpreters, taken in turns, medians.

Usage: ``python benchmarks/import_time.py [REPEATS]``. The house rule is at most 0.2 s.
"""

import statistics
import subprocess
import sys

STATEMENTS = ("import torch", "import torch, gendr_core")
LIMIT_S = 0.2
REPEATS = 9


def import_seconds(statement: str) -> float:
    """Return the seconds that ``statement`` takes in a fresh interpreter, its start not counted."""
    code = f"import time; start = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main(repeats: int) -> int:
    """Print both medians and what lies between, and return 1 where that is over the limit."""
    # The first of each fills the file cache. In turns, so that a busy machine slows both alike.
    rounds = [[import_seconds(statement) for statement in STATEMENTS] for _ in range(repeats + 1)][1:]
    for statement, seconds in zip(STATEMENTS, zip(*rounds, strict=True), strict=True):
        print(f"{statement:28} median {statistics.median(seconds):.3f} s of {repeats}")
    added = statistics.median(both - alone for alone, both in rounds)
    print(f"gendr_core adds {added:.3f} s, limit {LIMIT_S} s")
    return int(added > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else REPEATS))
