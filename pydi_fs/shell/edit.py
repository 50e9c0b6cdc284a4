"""``pydi edit``: a file of the tree in an editor; what is saved is one new version, or a question.

Called by `pydi_fs.cli` with a connected session. The text is edited in a local copy. It becomes the
file's content in one commit that names the version it was made from; if that is not the newest one
any more, nothing is overwritten, and the person decides. Text that could not be stored stays in the
local copy, whose name is told.
"""

from __future__ import annotations

import argparse
import asyncio
import difflib
import errno
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from pydi_fs.commands_session import FILE_ERRORS, Session, about, or_none, show
from pydi_fs.same_content import commit_same
from pydi_fs.shell import programs
from pydi_node import portable
from pydi_node.errors import EXIT_USAGE, FileError, PydiError, UserError
from pydi_node.ids import Ino, LogIndex
from pydi_node.records import Attr

TEXT_BYTES_MAX = 64 << 20  # an editor takes it whole, and so do we
CONFLICT_NAMES_MAX = 1000
BOTH, MINE, THEIRS = "both", "mine", "theirs"
DIFF_LINES_MAX = 200  # of a terminal; more nobody compares by eye

# (mine, theirs) -> BOTH, MINE or THEIRS
Decide = Callable[[bytes, bytes], Awaitable[str]]


@dataclass(slots=True)
class Edited:
    """One file while it is edited."""

    session: Session
    path: bytes
    parent: Ino
    name: bytes
    ino: Ino | None  # None: there is no such file yet
    base: LogIndex | None  # the version that the text was made from
    text: bytes = b""  # as it was stored last

    async def store(self, text: bytes, decide: Decide) -> str:
        """``text`` is a version of the file, or what the person decided happened. A sentence."""
        while True:
            try:
                await self._commit(text)
            except FileError as exc:
                if exc.errno not in (errno.ESTALE, errno.EEXIST):
                    raise
            else:
                self.text = text
                return f"{show(self.path)}: saved"
            theirs, attr = await self._newest()
            if theirs == text:
                self._adopt(attr, text)
                return f"{show(self.path)}: saved"
            if attr is not None and theirs == self.text:
                # A new version of what was edited: none of another's work would be lost.
                self._adopt(attr, theirs)
                continue
            choice = await decide(text, theirs)
            if choice == MINE:
                # Over the version that was shown, and over no later one.
                self._adopt(attr, theirs)
                continue
            if choice == THEIRS:
                self._adopt(attr, theirs)
                return f"{show(self.path)}: left as it is"
            beside = await self._store_beside(text)
            self._adopt(attr, theirs)
            return f"{show(self.path)}: left as it is, yours is {show(beside)}"

    def _adopt(self, attr: Attr | None, text: bytes) -> None:
        self.ino, self.base = (None, None) if attr is None else (attr.ino, attr.version)
        self.text = text

    async def _commit(self, text: bytes) -> None:
        session, vfs, caller = self.session, self.session.vfs, self.session.caller
        mode = 0o666 & ~session.umask
        growing, fh = await vfs.tmpfile(caller, self.parent, mode, os.O_WRONLY)
        try:
            if text:
                await vfs.write(fh, 0, text)
                await vfs.flush(fh)
            if self.ino is None:
                await vfs.link(caller, growing.ino, self.parent, self.name)
                attr = await vfs.getattr(growing.ino)
            else:
                now = await or_none(vfs.lookup(self.parent, self.name))
                if now is None or now.ino != self.ino:
                    # Another program saves by renaming: the name stands for another file now.
                    raise FileError(errno.ESTALE)
                attr = await commit_same(session, self.ino, growing.ino, base=self.base)
        finally:
            await vfs.abandon(fh)
        self.ino, self.base = attr.ino, attr.version

    async def _newest(self) -> tuple[bytes, Attr | None]:
        """What the name stands for now; nothing when it was removed."""
        session = self.session
        attr = await or_none(session.vfs.lookup(self.parent, self.name))
        if attr is None:
            return b"", None
        return await _content(session, attr.ino)

    async def _store_beside(self, text: bytes) -> bytes:
        """``text`` under a name of its own; its path."""
        for number in range(1, CONFLICT_NAMES_MAX):
            name = self.name[:200] + b".conflict-%d" % number
            other = Edited(self.session, b"", self.parent, name, None, None)
            try:
                await other._commit(text)
            except FileError as exc:
                if exc.errno != errno.EEXIST:
                    raise
            else:
                return self.path.rpartition(b"/")[0] + b"/" + name
        raise FileError(errno.EEXIST)


async def run(session: Session, arguments: argparse.Namespace) -> None:
    """``edit PATH``: in $VISUAL or $EDITOR, or a window, until it is closed."""
    path = session.absolute(portable.bytes_of(arguments.path))
    try:
        edited = await _opened(session, path, arguments.binary)
    except FILE_ERRORS as exc:
        raise UserError(about(path, exc)) from exc
    directory = tempfile.mkdtemp(prefix="pydi-edit-")
    # Its own name, for an editor knows by it what kind of text this is.
    name = edited.name if portable.name_refusal(edited.name) is None else b"text"
    local = os.path.join(portable.bytes_of(directory), name)
    with open(
        os.open(local, os.O_WRONLY | os.O_CREAT | os.O_EXCL | portable.O_PLAIN, 0o600), "wb"
    ) as file:
        file.write(edited.text)
    try:
        editor = _editor()
        if editor is not None:
            await _in_program(edited, [*editor, portable.text_of(local)], local)
        elif _has_display():
            await _in_window(edited, local)
        else:
            raise UserError("no editor: set VISUAL or EDITOR to one", EXIT_USAGE)
    except BaseException as exc:
        if _read(local) != edited.text:
            raise UserError(
                f"{show(path)}: not stored ({exc or 'interrupted'}): your text is in {show(local)}"
            ) from exc
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)


async def _opened(session: Session, path: bytes, binary: bool) -> Edited:
    found = await or_none(session.resolve(path))
    if found is None:
        parent, name = await session.parent_of(path)
        return Edited(session, path, parent, name, None, None)
    if not found.is_regular:
        raise FileError(errno.EISDIR if found.is_dir else errno.EINVAL)
    if found.size > TEXT_BYTES_MAX:
        raise UserError(f"{show(path)}: too large for an editor")
    await session.vfs.access(session.caller, found.ino, os.R_OK | os.W_OK)
    # What a link leads to is edited, under its own name.
    while (await session.resolve(path, follow=False)).is_symlink:
        link = await session.resolve(path, follow=False)
        head = path.rpartition(b"/")[0]
        target = await session.vfs.readlink(link.ino)
        path = target if target.startswith(b"/") else head + b"/" + target
    parent, name = await session.parent_of(path)
    text, attr = await _content(session, found.ino)
    if not binary and not is_text(text):
        raise UserError(f"{show(path)}: does not look like text (--binary edits it anyway)")
    return Edited(session, path, parent, name, attr.ino, attr.version, text)


async def _content(session: Session, ino: Ino) -> tuple[bytes, Attr]:
    """All of a file, and the version that it is."""
    while True:
        got: list[bytes] = []
        attr = await session.vfs.getattr(ino)
        await session.read_into(ino, got.append)
        after = await session.vfs.getattr(ino)
        if after.version == attr.version:
            return b"".join(got), after


def is_text(content: bytes) -> bool:
    """UTF-8 without NUL: what an editor gives back as it got it."""
    try:
        return "\0" not in content.decode()
    except UnicodeDecodeError:
        return False


def _read(local: bytes) -> bytes:
    with open(local, "rb") as file:
        return file.read()


def _editor() -> list[str] | None:
    for variable in ("VISUAL", "EDITOR"):
        text = os.environ.get(variable, "")
        if portable.IS_WINDOWS:  # where a backslash is part of a path
            command = [word.strip('"') for word in shlex.split(text, posix=False)]
        else:
            command = shlex.split(text)
        if command:
            return command
    return None


def _has_display() -> bool:
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


# --- in a program of the terminal ----------------------------------------------------------------


async def _in_program(edited: Edited, command: list[str], local: bytes) -> None:
    code = await programs.run(command)
    if code != 0:
        raise UserError(f"{command[0]} ended with exit code {code}")
    text = _read(local)
    if text != edited.text or edited.ino is None:
        edited.session.out(await edited.store(text, _ask))
        edited.text = text  # stored, here or beside


async def _ask(mine: bytes, theirs: bytes) -> str:
    """On the terminal, after showing both."""
    if not sys.stdin.isatty():
        raise UserError("the file was changed meanwhile")
    from prompt_toolkit import PromptSession  # only now: it is slow to load

    prompt = PromptSession[str]()
    old, new = (text.decode(errors="replace").splitlines() for text in (theirs, mine))
    lines = list(difflib.unified_diff(old, new, "theirs", "mine", lineterm=""))
    print("\n".join(lines[:DIFF_LINES_MAX]))
    if len(lines) > DIFF_LINES_MAX:
        print(f"({len(lines) - DIFF_LINES_MAX} more lines)")
    choices = {"b": BOTH, "m": MINE, "t": THEIRS}
    while True:
        try:
            answer = await prompt.prompt_async(
                "The file was changed meanwhile. Keep [b]oth, take [m]ine, take [t]heirs? "
            )
        except (EOFError, KeyboardInterrupt):
            raise UserError("the file was changed meanwhile") from None
        if answer.strip().lower()[:1] in choices:
            return choices[answer.strip().lower()[:1]]


# --- in a window ---------------------------------------------------------------------------------


async def _in_window(edited: Edited, local: bytes) -> None:
    """The window is a process of its own, for Tk and asyncio both want the main thread. It writes
    the local copy and says "save"; what became of it goes back. See tk_editor.py."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "pydi_fs.shell.tk_editor", local, show(edited.path),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, limit=4 * TEXT_BYTES_MAX,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    pipe, lines = process.stdin, process.stdout

    def tell(**message: Any) -> None:
        pipe.write(json.dumps(message).encode() + b"\n")

    async def decide(mine: bytes, theirs: bytes) -> str:
        tell(kind="conflict", theirs=theirs.decode(errors="replace"))
        answer = await lines.readline()
        choice = answer.decode().strip()
        if choice not in (BOTH, MINE, THEIRS):
            raise UserError("the file was changed meanwhile")
        return choice

    sentence = ""
    try:
        while (line := await lines.readline()) == b"save\n":
            text = _read(local)
            try:
                sentence = await edited.store(text, decide)
            except PydiError as exc:
                tell(kind="failed", sentence=str(exc))
                continue
            shown = edited.text
            edited.text = text
            tell(kind="saved", sentence=sentence, text=shown.decode(errors="replace"))
        assert not line, line
        errors = (await process.stderr.read()).decode(errors="replace").strip()
        if await process.wait() != 0:
            raise UserError(errors.splitlines()[-1] if errors else "the editor's window failed")
        if sentence:
            edited.session.out(sentence)
    except BaseException:
        if process.returncode is None:
            process.terminate()
            await process.wait()
        raise
