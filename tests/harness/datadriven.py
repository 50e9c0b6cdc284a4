"""Scenarios as text: a command with its input, ``----``, and the exact output it must give.

    # a comment
    command argument name=value name=(a, b)
    input lines, optional
    ----
    expected output
                                (an empty line ends the case)

``check_file(path, handler, rewrite)`` runs the cases of one file in order through ``handler`` and
compares. With ``rewrite`` it puts the actual output into the file instead: look at the difference
and commit only what you understand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SEPARATOR = "----"

_ARGUMENT = re.compile(r"(?:(?P<name>[\w-]+)=)?(?:\((?P<list>[^)]*)\)|(?P<value>[^\s()]+))")


@dataclass(frozen=True, slots=True)
class Case:
    """One command of a scenario."""

    command: str
    positional: tuple[str, ...]
    named: dict[str, tuple[str, ...]]  # one value is a tuple of one
    input: str
    expected: str
    line: int  # of the command in its file, from 1

    def value(self, name: str, default: str = "") -> str:
        """The one value of a named argument."""
        values = self.named.get(name)
        if values is None:
            return default
        assert len(values) == 1, f"line {self.line}: {name} has {len(values)} values"
        return values[0]

    def integer(self, name: str, default: int = 0) -> int:
        return int(self.value(name, str(default)))


def parse(text: str) -> list[Case | str]:
    """The cases of a scenario in order; comments and empty lines between them as strings.

    ValueError  names the line of a case without separator.
    """
    parts: list[Case | str] = []
    lines = text.splitlines()
    at = 0
    while at < len(lines):
        line = lines[at]
        if not line.strip() or line.startswith("#"):
            parts.append(line)
            at += 1
            continue
        start = at
        at += 1
        while at < len(lines) and lines[at] != SEPARATOR:
            at += 1
        if at == len(lines):
            raise ValueError(f"line {start + 1}: no {SEPARATOR} after the command")
        body = lines[start + 1 : at]
        at += 1
        expected_start = at
        while at < len(lines) and lines[at].strip():
            at += 1
        expected = lines[expected_start:at]
        parts.append(_case(line, "\n".join(body), "\n".join(expected), start + 1))
    return parts


def check_file(path: Path, handler: Callable[[Case], str], rewrite: bool = False) -> None:
    """Run every case of the file; AssertionError with the first difference.

    handler  the output for one case; trailing white space and a final newline don't count. An
             output with an empty line in it would end the case: it gets a "." there.
    """
    source = path.read_text(encoding="utf-8").splitlines()
    parts = parse("\n".join(source))
    result: list[str] = []
    for part in parts:
        if isinstance(part, str):
            result.append(part)
            continue
        actual = _tidy(handler(part))
        if not rewrite:
            assert actual == part.expected, (
                f"{path.name}:{part.line}: {source[part.line - 1]}\n"
                f"expected:\n{part.expected}\nactual:\n{actual}"
            )
        result.append(source[part.line - 1])
        if part.input:
            result.extend(part.input.splitlines())
        result.append(SEPARATOR)
        if actual:
            result.append(actual)
    if rewrite:
        path.write_text("\n".join(result).rstrip("\n") + "\n", encoding="utf-8")


def _case(line: str, body: str, expected: str, number: int) -> Case:
    command, _, rest = line.partition(" ")
    positional: list[str] = []
    named: dict[str, tuple[str, ...]] = {}
    for match in _ARGUMENT.finditer(rest):
        if match["list"] is not None:
            values = tuple(v.strip() for v in match["list"].split(",") if v.strip())
        else:
            values = (match["value"],)
        if match["name"] is None:
            positional.extend(values)
        else:
            named[match["name"]] = values
    return Case(command, tuple(positional), named, body, expected, number)


def _tidy(output: str) -> str:
    lines = [line.rstrip() or "." for line in output.rstrip().splitlines()]
    return "\n".join(lines)
