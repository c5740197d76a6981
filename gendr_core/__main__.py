"""``python -m gendr_core``: the same as the ``gendr`` command."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
