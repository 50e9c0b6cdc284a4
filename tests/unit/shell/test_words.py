"""What a typed line of the shell means: words, wildcards, and what may follow."""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pydi_fs.shell import completion, wildcards, words
from pydi_fs.shell.completion import Suggestion

# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("   # nothing", []),
        ("ls", [(["ls"], False)]),
        ("  ls\t-l  a ", [(["ls", "-l", "a"], False)]),
        ("cat 'a b' \"c d\" e\\ f", [(["cat", "a b", "c d", "e f"], False)]),
        ("cat 'it'\\''s'", [(["cat", "it's"], False)]),
        ('cat "a\\"b\\\\c\\d"', [(["cat", 'a"b\\c\\d'], False)]),
        ("cat '' x", [(["cat", "", "x"], False)]),
        ("put a b &", [(["put", "a", "b"], True)]),
        ("put a b& ls", [(["put", "a", "b"], True), (["ls"], False)]),
        ("ls a; ls b;; ", [(["ls", "a"], False), (["ls", "b"], False)]),
        ("cat a#b #c", [(["cat", "a#b"], False)]),
        ("cat 'a;b&c'", [(["cat", "a;b&c"], False)]),
    ],
)
def test_lines(text: str, expected: list[tuple[list[str], bool]]) -> None:
    """Quotes, backslashes, ``;``, ``&`` and ``#`` mean what they mean in a shell."""
    assert [(line.texts, line.background) for line in words.split(text)] == expected


@pytest.mark.parametrize("text", ["cat 'a", 'cat "a', "cat a\\", "&", "ls & &", "a | b", "a > b"])
def test_lines_that_mean_nothing(text: str) -> None:
    """An open quote or a lone ``&`` is refused in a sentence."""
    with pytest.raises(words.LineError):
        words.split(text)


@example(["a\r", "b"])
@given(st.lists(st.text(max_size=12), min_size=1, max_size=4))
def test_quoted_words_come_back(texts: list[str]) -> None:
    """What `quote` makes of any words, `split` reads as those words, and so does Python's shlex
    where it knows the same rules."""
    line = " ".join(map(words.quote, texts))
    (found,) = words.split(line)
    assert found.texts == texts
    assert not any(word.has_wildcards for word in found.words)
    if all(text.isascii() for text in texts):
        assert shlex.split(line) == texts


@pytest.mark.parametrize(
    ("typed", "text", "pattern"),
    [
        ("~", "/h[1]", r"/h\[1\]"),
        ("~/*.txt", "/h[1]/*.txt", r"/h\[1\]/*.txt"),
        ("'~/x'", "~/x", "~/x"),
        ("\\~", "~", "~"),
        ("~other/x", "~other/x", "~other/x"),
        ("a~/x", "a~/x", "a~/x"),
    ],
)
def test_home(typed: str, text: str, pattern: str) -> None:
    """An unquoted ``~`` at the beginning is one's own home, whose name holds no wildcards."""
    (line,) = words.split(f"put {typed} x")
    word = line.words[1].at_home("/h[1]")
    assert (word.text, word.pattern()) == (text, pattern)


# --- wildcards -----------------------------------------------------------------------------------

TREE: dict[str, list[tuple[str, bool]]] = {
    "": [("a.txt", False), ("b.txt", False), (".hidden", False), ("dir", True), ("dir2", True),
         ("[x]", False), ("*", False), ("new\nline", False)],
    "dir/": [("c.txt", False), ("deep", True)],
    "dir2/": [("c.txt", False)],
    "dir/deep/": [("d.txt", False)],
    "/": [("root", True)],
    "/root/": [("file", False)],
}  # fmt: skip


async def listed(path: str) -> Sequence[tuple[str, bool]]:
    return TREE.get(path if not path or path.endswith("/") else path + "/", [])


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("*.txt", ["a.txt", "b.txt"]),
        ("?.txt", ["a.txt", "b.txt"]),
        ("[!a].txt", ["b.txt"]),
        ("[ab].tx[t]", ["a.txt", "b.txt"]),
        ("[a-b].txt", ["a.txt", "b.txt"]),
        ("[b-a].txt", []),
        ("*/c.txt", ["dir/c.txt", "dir2/c.txt"]),
        ("*/*/*.txt", ["dir/deep/d.txt"]),
        ("dir*/", ["dir/", "dir2/"]),
        ("d*", ["dir", "dir2"]),
        (".h*", [".hidden"]),
        ("/*/file", ["/root/file"]),
        ("/*", ["/root"]),
        ("'*'*", ["*"]),
        ("\\[*", ["[x]"]),
        ("[[]*", ["[x]"]),
        ("[]x[]*", ["[x]"]),
        ("[x", []),
        ("new*", ["new\nline"]),
        ("nothing*", []),
        ("dir/../a.t*", []),
    ],
)
def test_wildcards(typed: str, found: list[str]) -> None:
    """``*`` never crosses a slash and shows no hidden name; what is quoted is no wildcard."""
    (line,) = words.split(f"ls {typed}")
    assert asyncio.run(wildcards.expand(line.words[1].pattern(), listed)) == found


@given(st.text(alphabet="ab*?[]!-^\\./\n", max_size=12))
def test_any_pattern_is_survived(pattern: str) -> None:
    """Whatever is typed fits something or nothing; no pattern is an error."""
    found = asyncio.run(wildcards.expand(pattern, listed))
    assert found == sorted(found)


# --- completion ----------------------------------------------------------------------------------

LOCAL = {
    "": [("photo 1.jpg", False), ("photos", True)],
    "photos/": [("x", False)],
    "~/": [("in home", False)],
}
COMMANDS = ["cat", "cd", "get", "help", "lcd", "ls", "put"]
FLAGS = {"put": ["--mirror", "--recursive"]}


def suggest(line: str) -> list[str]:
    async def local(path: str) -> Sequence[tuple[str, bool]]:
        return LOCAL.get(path, [])

    found: list[Suggestion] = asyncio.run(completion.suggest(line, COMMANDS, FLAGS, listed, local))
    return [line[: s.start] + s.text for s in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c", ["cat ", "cd "]),
        ("", [f"{name} " for name in COMMANDS]),
        ("help ca", ["help cat "]),
        ("ls d", ["ls dir/", "ls dir2/"]),
        ("ls dir/", ["ls dir/c.txt ", "ls dir/deep/"]),
        ("ls; cat dir/c", ["ls; cat dir/c.txt "]),
        ("cat .h", ["cat .hidden "]),
        ("cat \\[", ["cat \\[x\\] "]),
        ("cat '[", ["cat '[x]' "]),
        ('cat "[', ['cat "[x]" ']),
        ("put ph", ["put photo\\ 1.jpg ", "put photos/"]),
        ("put photo\\ ", ["put photo\\ 1.jpg "]),
        ('put "photo 1', ['put "photo 1.jpg" ']),
        ("put photos/x d", ["put photos/x dir/", "put photos/x dir2/"]),
        ("get a", ["get a.txt "]),
        ("get a.txt ph", ["get a.txt photo\\ 1.jpg ", "get a.txt photos/"]),
        ("put ~/in", ["put ~/in\\ home "]),
        ("lcd ph", ["lcd photo\\ 1.jpg ", "lcd photos/"]),
        ("put --m", ["put --mirror "]),
        ("!ca", []),
        ("cat 'no such", []),
    ],
)
def test_completion(line: str, expected: list[str]) -> None:
    """Commands, flags, paths of the side that fits; quoted as the word was begun."""
    assert suggest(line) == expected


def test_backslashes_of_windows_paths_stay() -> None:
    """Where they are asked to: before what needs no quoting; a blank can still be typed."""
    (line,) = words.split("put C:\\photos\\2026\\ march /x", keeps_backslashes=True)
    assert line.texts == ["put", "C:\\photos\\2026 march", "/x"]
    (line,) = words.split("put C:\\a\\*.jpg \\\\host\\share /x", keeps_backslashes=True)
    assert line.words[1].has_wildcards
    assert line.words[1].with_slashes().pattern() == "C:/a/*.jpg"
    assert line.texts[2] == "\\\\host\\share"
    (line,) = words.split("put C:\\photos /x")
    assert line.texts == ["put", "C:photos", "/x"]


def test_wildcards_behind_a_drive() -> None:
    """The drive is listed by no directory; where there are no drives it is a name like others."""

    async def entries_of(path: str) -> Sequence[tuple[str, bool]]:
        return {"C:/": [("photos", True)], "C:/photos/": [("a.jpg", False)]}.get(path, [])

    async def scenario() -> None:
        for pattern in ("C:/photos/*.jpg", "C:/p*/a.jpg"):
            assert await wildcards.expand(pattern, entries_of, True) == ["C:/photos/a.jpg"]
            assert await wildcards.expand(pattern, entries_of) == []

    asyncio.run(scenario())
