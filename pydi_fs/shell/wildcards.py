"""Which paths a pattern means. Pure: what directories hold is asked of the caller.

As in POSIX 2.13: ``*`` and ``?`` and ``[...]`` never match a slash, nor a leading dot; what fits
nothing stays as it was typed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence

MATCHES_MAX = 100_000  # words of one command; a typo must not fill the memory

# path of a directory ("" where paths begin) -> (name, whether it is a directory) of what it holds;
# empty for what is no directory
List = Callable[[str], Awaitable[Sequence[tuple[str, bool]]]]


class TooManyError(ValueError):
    """The pattern fits more than a command should get."""


async def expand(pattern: str, entries_of: List, has_drives: bool = False) -> list[str]:
    """Paths that the pattern fits, sorted; empty when there is none.

    pattern     with a backslash before each special character that is meant literally.
    has_drives  ``C:/`` is where paths begin, and no directory.
    """
    drive = pattern[:2] if has_drives and pattern[1:3] == ":/" else ""
    pattern = pattern.removeprefix(drive)
    parts = _split(pattern)
    found = [f"{drive}/"] if pattern.startswith("/") else [""]
    wants_directory = pattern.endswith("/")
    for number, part in enumerate(parts):
        is_last = number == len(parts) - 1
        needs_directory = not is_last or wants_directory
        if not _is_wild(part):
            # A plain name is looked up only where something depends on whether it is there.
            plain = _unescaped(part)
            if part in (".", ".."):
                found = [path + plain + "/" for path in found]
            else:
                found = [
                    path + plain + ("/" if needs_directory else "")
                    for path in found
                    if any(
                        name == plain and (is_dir or not needs_directory)
                        for name, is_dir in await entries_of(path)
                    )
                ]
            continue
        fits = _compiled(part)
        shows_hidden = part.startswith((".", "\\."))
        matched = []
        for path in found:
            for name, is_dir in sorted(await entries_of(path)):
                if name.startswith(".") and not shows_hidden:
                    continue
                if needs_directory and not is_dir:
                    continue
                if fits.fullmatch(name):
                    matched.append(path + name + ("/" if needs_directory else ""))
            if len(matched) > MATCHES_MAX:
                raise TooManyError(f"{pattern} fits more than {MATCHES_MAX} names")
        found = matched
    if not wants_directory:
        found = [path.rstrip("/") if path.strip("/") else path for path in found]
    return sorted(found)


def _split(pattern: str) -> list[str]:
    return [part for part in pattern.split("/") if part]


def _is_wild(part: str) -> bool:
    return re.search(r"(?<!\\)(?:\\\\)*[*?\[]", part) is not None


def _unescaped(part: str) -> str:
    return re.sub(r"\\(.)", r"\1", part, flags=re.DOTALL)


def _compiled(part: str) -> re.Pattern[str]:
    out, at = "", 0
    while at < len(part):
        char = part[at]
        at += 1
        if char == "\\" and at < len(part):
            out += re.escape(part[at])
            at += 1
        elif char == "*":
            out += ".*"
        elif char == "?":
            out += "."
        elif char == "[":
            group, at = _bracket(part, at)
            out += group
        else:
            out += re.escape(char)
    return re.compile(out, re.DOTALL)


def _bracket(part: str, at: int) -> tuple[str, int]:
    """(regular expression, where it goes on) of what follows a ``[``; one without ``]`` is a
    character like others."""
    end = at
    if end < len(part) and part[end] in "!^":
        end += 1
    if end < len(part) and part[end] == "]":
        end += 1
    while end < len(part) and part[end] != "]":
        end += 2 if part[end] == "\\" else 1
    if end >= len(part):
        return r"\[", at
    inside = part[at:end]
    negated = inside.startswith(("!", "^"))
    inside = inside[1:] if negated else inside
    try:
        items = re.sub(r"\\(.)|([\[\]^&~|])", lambda m: "\\" + (m[1] or m[2]), inside)
        group = f"[{'^' if negated else ''}{items}]"
        re.compile(group)
    except re.error:  # such as [z-a], which fits nothing
        return "(?!)", end + 1
    return group, end + 1
