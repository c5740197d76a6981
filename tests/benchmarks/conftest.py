"""The scripts of benchmarks/ are run as files and import each other by bare names: tests do as their folder does."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
