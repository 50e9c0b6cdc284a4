"""The manual page of ``pydi``, made from the table of its commands.

    python -m pydi_fs.manual > docs/pydi.1

A test compares the file with what this makes. Pure, but for that call.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence

from pydi_fs import cli
from pydi_node.errors import EXIT_FAILED, EXIT_OK, EXIT_UNREACHABLE, EXIT_USAGE

_EXIT_CODES = {
    EXIT_OK: "done",
    EXIT_FAILED: "failed; standard error has one sentence for each thing that did",
    EXIT_USAGE: "wrong usage; nothing was done",
    EXIT_UNREACHABLE: "the cluster could not be reached",
    cli.EXIT_INTERRUPTED: "interrupted",
}


def manual() -> str:
    """In man(7)'s language."""
    parser = cli.build_parser()
    lines = [
        ".\\\" Made by python -m pydi_fs.manual",
        ".TH PYDI 1",
        ".SH NAME",
        "pydi \\- work with a PyDi cluster without a mount",
        ".SH SYNOPSIS",
        ".B pydi",
        ".I COMMAND",
        "[\\fIARGUMENT\\fR...]",
        ".SH DESCRIPTION",
        _text(
            "PyDi turns the disks of several machines into one folder. pydi reads and changes that"
            " folder from any machine that can reach a node, without a mount and without FUSE."
            " Paths are those of the tree; / is its root, and a leading slash may be left out."
        ),
        ".SH OPTIONS",
        "These stand before or behind the command.",
        *_options(parser),
        ".SH COMMANDS",
    ]  # fmt: skip
    for name, command in sorted(subcommands(parser).items()):
        lines += [f".SS {_text(_usage(name, command))}", _text(_sentence(command.description))]
        shared = {action.dest for action in parser._actions}
        lines += _options(command, shared)
        for example in examples_of(command):
            lines += [".PP", ".RS", ".B " + _text(example), ".RE"]
    lines += [".SH EXIT STATUS"]
    for code, text in _EXIT_CODES.items():
        lines += [".TP", f".B {code}", _text(text)]
    lines += [
        ".SH ENVIRONMENT",
        _text(
            "Each option that takes a value can be set in the environment: --data-dir as"
            " PYDI_DATA_DIR. VISUAL and EDITOR name the program that edit starts."
        ),
        ".SH FILES",
        ".TP",
        ".I ~/.local/state/pydi/shell-history",
        "what was typed in the shell",
        ".SH SEE ALSO",
        ".BR pydi-node (1),",
        ".BR pydi-mount (1)",
    ]
    return "\n".join(lines) + "\n"


def subcommands(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """name -> its parser"""
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    found: Mapping[str, argparse.ArgumentParser] = action.choices
    return found


def examples_of(command: argparse.ArgumentParser) -> Sequence[str]:
    """What its --help shows as such."""
    return [line.strip() for line in (command.epilog or "").splitlines()[1:]]


def _usage(name: str, command: argparse.ArgumentParser) -> str:
    words = [name]
    for action in command._actions:
        if not action.option_strings:
            shown = str(action.metavar or action.dest)
            optional = action.nargs in ("?", "*")
            repeated = action.nargs in ("+", "*") and "..." not in shown
            shown += "..." if repeated else ""
            words.append(f"[{shown}]" if optional else shown)
    return " ".join(words)


def _options(command: argparse.ArgumentParser, without: Iterable[str] = ()) -> list[str]:
    lines: list[str] = []
    for action in command._actions:
        is_listed = action.option_strings and action.dest not in ("help", *without)
        if not is_listed:
            continue
        shown = str(action.metavar or "|".join(action.choices or ()))
        value = "" if action.nargs == 0 else f" \\fI{_text(shown)}\\fR"
        names = ", ".join(f"\\fB{_text(name)}\\fR" for name in action.option_strings)
        lines += [".TP", names + value, _text(action.help or "")]
    return lines


def _sentence(text: str | None) -> str:
    return (text or "")[:1].upper() + (text or "")[1:] + "."


def _text(text: str) -> str:
    """Plain text, whose dashes, dots and backslashes mean nothing to man."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")
    return f"\\&{escaped}" if escaped.startswith((".", "\\(aq")) else escaped


if __name__ == "__main__":
    sys.stdout.write(manual())
