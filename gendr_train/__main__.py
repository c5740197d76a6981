"""``python -m gendr_train``: the same as the ``gendr-train`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
