"""The scenario runner itself: parsing, comparing, rewriting."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.datadriven import Case, check_file, parse

TEXT = """# a comment

add 1 2 to=(3, 4) name=x
input line
----
10

empty
----
"""


def test_a_case_has_arguments_input_and_expectation() -> None:
    """Positional and named arguments, lists, input lines, expected lines, line numbers."""
    cases = [part for part in parse(TEXT) if isinstance(part, Case)]
    assert cases[0].positional == ("1", "2")
    assert cases[0].named == {"to": ("3", "4"), "name": ("x",)}
    assert (cases[0].input, cases[0].expected, cases[0].line) == ("input line", "10", 3)
    assert (cases[1].command, cases[1].expected) == ("empty", "")


def test_a_case_without_separator_is_refused() -> None:
    """The error names the line."""
    with pytest.raises(ValueError, match="line 2"):
        parse("\nadd 1")


def test_a_difference_fails_and_rewrite_repairs_it(tmp_path: Path) -> None:
    """The failure shows the line and both outputs; rewriting changes only the expectation, and
    then it passes."""
    path = tmp_path / "case.txt"
    path.write_text(TEXT)

    def handler(case: Case) -> str:
        return "eleven\n\nlines\n" if case.command == "add" else ""

    with pytest.raises(AssertionError, match=r"case.txt:3: add 1 2(.|\n)*10(.|\n)*eleven"):
        check_file(path, handler)
    check_file(path, handler, rewrite=True)
    assert path.read_text() == TEXT.replace("\n10\n", "\neleven\n.\nlines\n")
    check_file(path, handler)
