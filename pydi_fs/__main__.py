"""``python -m pydi_fs``: the same as ``pydi-mount``."""

import sys

from pydi_fs.mount_cli import main

if __name__ == "__main__":
    sys.exit(main())
