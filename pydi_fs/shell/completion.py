"""What may follow a half-typed line of the shell: commands, flags, paths of either side. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple

from pydi_fs.shell.words import quote, unfinished

LOCAL_COMMANDS = ("lcd", "lls")

# path of a directory ("" where paths begin) -> (name, whether it is a directory)
List = Callable[[str], Awaitable[Sequence[tuple[str, bool]]]]


class Suggestion(NamedTuple):
    """What a word may become.

    text   as it is typed, with quotes; a blank behind it when the word is complete.
    start  where the word begins in the line.
    shown  what a person reads in the list.
    """

    text: str
    start: int
    shown: str


class Sides(NamedTuple):
    """Where the paths of a word may be."""

    local: bool
    remote: bool


def sides_of(command: str, index: int) -> Sides:
    """Which paths fit the ``index``-th path (0 is the first) of a command while it is typed: nobody
    knows yet whether another one follows."""
    if command in LOCAL_COMMANDS:
        return Sides(local=True, remote=False)
    if command == "put":
        return Sides(local=True, remote=index > 0)
    if command == "get":
        return Sides(local=index > 0, remote=True)
    return Sides(local=False, remote=True)


async def suggest(
    line: str,
    commands: Sequence[str],
    flags: Mapping[str, Sequence[str]],
    remote: List,
    local: List,
) -> list[Suggestion]:
    """Everything that the word at the end of ``line`` may become, sorted.

    commands  all names; flags  of each command.
    """
    before, word = unfinished(line)
    if not before:
        if word.text.startswith("!"):
            return []
        fits = sorted(name for name in commands if name.startswith(word.text))
        return [Suggestion(f"{name} ", word.start, name) for name in fits]
    command = before[0]
    if word.text.startswith("-") and not word.open:
        fits = sorted(flag for flag in flags.get(command, ()) if flag.startswith(word.text))
        return [Suggestion(f"{flag} ", word.start, flag) for flag in fits]
    if command == "help":
        fits = sorted(name for name in commands if name.startswith(word.text))
        return [Suggestion(f"{name} ", word.start, name) for name in fits]
    index = sum(not text.startswith("-") for text in before[1:])
    sides = sides_of(command, index)
    found: dict[str, Suggestion] = {}
    for wanted, entries_of in ((sides.remote, remote), (sides.local, local)):
        if wanted:
            for suggestion in await _paths(word.text, word.open, word.start, entries_of):
                found.setdefault(suggestion.text, suggestion)
    return sorted(found.values(), key=lambda suggestion: suggestion.shown)


async def _paths(text: str, opened: str, start: int, entries_of: List) -> list[Suggestion]:
    head, slash, begin = text.rpartition("/")
    directory = head + slash
    suggestions = []
    for name, is_dir in await entries_of(directory):
        if not name.startswith(begin) or (name.startswith(".") and not begin.startswith(".")):
            continue
        if not name.isprintable():
            continue  # no keyboard has it: a wildcard does
        home = "~/" if directory.startswith("~/") and not opened else ""
        path = directory + name + ("/" if is_dir else "")
        typed = home + quote(path.removeprefix(home), opened)
        if not is_dir:
            typed += f"{opened} "
        suggestions.append(Suggestion(typed, start, name + ("/" if is_dir else "")))
    return suggestions
