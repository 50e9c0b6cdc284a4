"""``pydi-node``: parse, run one node, print one sentence when it can't, exit codes of errors.py.

Everything a node does is behind ``runtime.node.run_node``; nothing here but what a person types and
reads.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pydi_node import __version__
from pydi_node.config import OPTIONS, NodeConfig, load_config
from pydi_node.errors import EXIT_FAILED, EXIT_USAGE, PydiError, UserError

PROGRAM = "pydi-node"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse prints the whole usage; a person needs the one sentence."""
        raise UserError(f"{message} (see {self.prog} --help)", EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The flags, out of the same table as environment and config file."""
    parser = _Parser(
        prog=PROGRAM,
        description="Run one node of a PyDi cluster on this machine, in the foreground.",
        epilog="Each option can also be set in the environment (--log-level: PYDI_LOG_LEVEL) or"
        " in a TOML file; DIR/config.toml is read when it exists.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pydi {__version__}")
    parser.add_argument("--config", metavar="FILE", type=Path, help="read options from this file")
    for option in OPTIONS:
        if option.name == "data-dir":
            parser.add_argument("data-dir", nargs="?", metavar="DATA_DIR", help=option.help)
        elif option.is_switch:
            parser.add_argument(
                f"--{option.name}", dest=option.name, help=option.help, action="store_const",
                const="yes",
            )  # fmt: skip
        else:
            parser.add_argument(
                f"--{option.name}", dest=option.name, metavar=option.metavar, help=option.help,
                action="append",
            )  # fmt: skip
    return parser


def parse_config(arguments: Sequence[str]) -> NodeConfig:
    """The configuration for these arguments in this process's environment. UserError."""
    values = vars(build_parser().parse_args(arguments))
    config_file = values.pop("config") or os.environ.get("PYDI_CONFIG")
    flags = {
        name: [value] if isinstance(value, str) else value
        for name, value in values.items()
        if value is not None
    }
    path = Path(config_file) if config_file else None
    return load_config(flags, os.environ, os.geteuid(), path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the node until it is told to stop; the exit code."""
    try:
        if not __debug__:
            raise UserError("PyDi checks itself with assertions: start it without python -O")
        config = parse_config(sys.argv[1:] if arguments is None else arguments)
        # Only now: --help and a mistyped flag shouldn't wait for cryptography and SQLite.
        from pydi_node.runtime.node import run_node

        return run_node(config)
    except UserError as exc:
        print(f"{PROGRAM}: {exc}", file=sys.stderr)
        return exc.exit_code
    except PydiError as exc:
        print(f"{PROGRAM}: {exc}", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        # Before the node took over the signals: nothing has been started yet.
        return EXIT_FAILED
