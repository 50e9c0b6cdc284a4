"""``python -m pydi_node``: the same as ``pydi-node``."""

import sys

from pydi_node.cli import main

if __name__ == "__main__":
    sys.exit(main())
