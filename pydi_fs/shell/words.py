"""What a typed line means: words, quotes, wildcards, ``&``, ``#``. Pure.

As in a POSIX shell (2.2 Quoting, 2.3 Token Recognition), but without variables, pipes and
substitutions: ``;`` ends a command, ``&`` ends it and puts it into the background, a backslash or
quotes take a character's meaning away.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WILDCARDS = "*?["
_BLANK = " \t"
_SPECIAL = frozenset(" \t\n'\"\\&;#*?[]$`|<>(){}~!")
_SPECIAL_IN_PATHS = _SPECIAL - frozenset("\\*?[]")  # what a backslash quotes on Windows


class LineError(ValueError):
    """The line can't be understood; its text is one sentence."""


@dataclass(slots=True)
class Word:
    """One word of a line.

    text     what was meant, quotes taken off.
    literal  for each character of ``text`` whether it was quoted: a wildcard is none then.
    start    where the word begins in the line.
    open     the quote that was not closed, "" when there is none.
    """

    text: str = ""
    literal: list[bool] = field(default_factory=list)
    start: int = 0
    open: str = ""

    def add(self, char: str, literal: bool) -> None:
        self.text += char
        self.literal.append(literal)

    @property
    def has_wildcards(self) -> bool:
        return any(c in WILDCARDS and not q for c, q in zip(self.text, self.literal, strict=True))

    def at_home(self, home: str) -> Word:
        """With an unquoted ``~`` at its beginning as the directory ``home``; other users' homes
        are not known."""
        if not (self.text == "~" or self.text.startswith("~/")) or self.literal[0]:
            return self
        return Word(home + self.text[1:], [True] * len(home) + self.literal[1:], self.start)

    def with_slashes(self) -> Word:
        """As a path whose parts are separated by slashes, which Windows takes as well."""
        return Word(self.text.replace("\\", "/"), self.literal, self.start, self.open)

    def pattern(self) -> str:
        """For `wildcards`: the text, with a backslash before each special character that was
        quoted."""
        return "".join(
            f"\\{c}" if c == "\\" or (q and c in "*?[]!-^") else c
            for c, q in zip(self.text, self.literal, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Line:
    """One command of a line."""

    words: tuple[Word, ...]
    background: bool = False

    @property
    def texts(self) -> list[str]:
        return [word.text for word in self.words]


def split(text: str, keeps_backslashes: bool = False) -> list[Line]:
    """The commands of a line. LineError for a quote that is not closed, or an ``&`` alone.

    keeps_backslashes  those before an ordinary character, a wildcard or another backslash are part
                       of the word: for Windows, where people type C:\\photos\\*.jpg.
    """
    lines: list[Line] = []
    words: list[Word] = []
    for token in _tokens(text, partial=False, keeps_backslashes=keeps_backslashes):
        if isinstance(token, Word):
            words.append(token)
            continue
        if not words and token == "&":
            raise LineError("& needs a command before it")
        if words:
            lines.append(Line(tuple(words), background=token == "&"))
        words = []
    if words:
        lines.append(Line(tuple(words)))
    return lines


def unfinished(text: str) -> tuple[list[str], Word]:
    """For completion: (the words before the last one, the word being typed, perhaps empty) of the
    command at the end of ``text``. Quotes may be open."""
    words: list[Word] = []
    for token in _tokens(text, partial=True):
        if isinstance(token, Word):
            words.append(token)
        else:
            words = []
    if words and (words[-1].open or not text.endswith(tuple(_BLANK)) or _ends_escaped(text)):
        *before, last = words
        return [word.text for word in before], last
    return [word.text for word in words], Word(start=len(text))


def _ends_escaped(text: str) -> bool:
    """The last character is a blank that a backslash made part of a word."""
    slashes = len(text[:-1]) - len(text[:-1].rstrip("\\"))
    return slashes % 2 == 1


def quote(text: str, opened: str = "") -> str:
    """How ``text`` is typed; with ``opened`` the quote that already stands before it."""
    if opened == "'":
        return "'" + text.replace("'", "'\\''")
    if opened == '"':
        return '"' + "".join(f"\\{c}" if c in '"\\' else c for c in text)
    if not text:
        return "''"
    if not text.isprintable():  # a line break, or what others than us may take for one
        return "'" + text.replace("'", "'\\''") + "'"
    return "".join(f"\\{c}" if c in _SPECIAL else c for c in text)


def _tokens(text: str, partial: bool, keeps_backslashes: bool = False) -> list[Word | str]:
    tokens: list[Word | str] = []
    word: Word | None = None
    position = 0
    while position < len(text):
        char = text[position]
        if char in _BLANK or char == "\n":
            if word is not None:
                tokens.append(word)
                word = None
            position += 1
            continue
        if char in "&;":
            if word is not None:
                tokens.append(word)
                word = None
            tokens.append(char)
            position += 1
            continue
        if char == "#" and word is None:
            break
        if char in "|<>" and not partial:
            raise LineError(f"{char} is not known here: quote it if the character is meant")
        if word is None:
            word = Word(start=position)
        if char in "'\"":
            position = _quoted(text, position, word, partial)
        elif (
            char == "\\" and keeps_backslashes and text[position + 1 :][:1] not in _SPECIAL_IN_PATHS
        ):
            word.add(char, literal=True)
            position += 1
        elif char == "\\":
            if position + 1 == len(text):
                if not partial:
                    raise LineError("a backslash at the end of the line means nothing")
                break
            word.add(text[position + 1], literal=True)
            position += 2
        else:
            word.add(char, literal=False)
            position += 1
    if word is not None:
        tokens.append(word)
    return tokens


def _quoted(text: str, position: int, word: Word, partial: bool) -> int:
    """Adds what stands between quotes; where it goes on behind them."""
    mark = text[position]
    at = position + 1
    while at < len(text):
        char = text[at]
        if char == mark:
            return at + 1
        if mark == '"' and char == "\\" and at + 1 < len(text) and text[at + 1] in '"\\':
            at += 1
            char = text[at]
        word.add(char, literal=True)
        at += 1
    if not partial:
        raise LineError(f"a {mark} is not closed")
    word.open = mark
    return at
