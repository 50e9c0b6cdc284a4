"""``pydi shell``: reads lines, runs commands, keeps jobs.

Called by `pydi_fs.cli` with a connected session. The commands are those of its table, run in the
one process and over the one connection; this adds where one is (cd, lcd), jobs, wildcards, and
other programs. An error is one sentence and the shell goes on; Ctrl-C ends what runs, not the
shell. With input that is no terminal it runs the lines and ends with the last one's exit code.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import logging
import os
import posixpath
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from pydi_fs import cli, standard_input
from pydi_fs.commands_session import Session, about, warn
from pydi_fs.progress import Progress
from pydi_fs.shell import completion, programs, wildcards, words
from pydi_fs.shell.jobs import Job, Jobs
from pydi_fs.shell.words import Line, LineError, Word
from pydi_node import portable
from pydi_node.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_USAGE,
    FileError,
    PydiError,
    UserError,
)

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

log = logging.getLogger("pydi.shell")

EXIT_TERMINATED = 143  # a shell's number for SIGTERM
BACKGROUND = ("put", "get", "cp", "rm")  # what takes long and prints nothing that one waits for
LIST_TIMEOUT_S = 3.0  # completion: longer than that nobody keeps a finger on the key
TOOLBAR_S = 0.5
HISTORY_NAME = "shell-history"

Builtin = Callable[["Shell", list[str]], Awaitable[int]]


class _Help(NamedTuple):
    usage: str
    text: str


async def run(session: Session, arguments: argparse.Namespace) -> None:
    """``shell``: until ``exit``, Ctrl-D or the end of the input."""
    if session.json:
        raise UserError("the shell is for people: --json belongs to its commands", EXIT_USAGE)
    shell = Shell(session)
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    session.exit_code = await (shell.converse() if is_terminal else shell.obey())


class Shell:
    """One shell: where it is, what it runs."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._parser = cli.build_parser()
        self._jobs = Jobs(self._tell)
        self._last_code = EXIT_OK
        self._leaving = False
        self._old_local = os.getcwd()
        self._old_remote = b"/"
        self._is_interactive = False
        self._prompt: PromptSession[str] | None = None

    # --- reading lines ---------------------------------------------------------------------------

    async def converse(self) -> int:
        """With a person; the exit code is 0 however their commands went."""
        from prompt_toolkit.patch_stdout import patch_stdout

        self._is_interactive = True
        self._prompt = prompt = _prompt_session(self)
        main = asyncio.current_task()
        assert main is not None
        loop = asyncio.get_running_loop()
        for name in ("SIGTERM", "SIGHUP"):
            # The terminal went away, or the machine does: uploads keep what they have.
            portable.on_signal(loop, name, main.cancel)
        try:
            # Between two commands Ctrl-C means nothing.
            with programs.on_interrupt(lambda: None):
                while not self._leaving:
                    try:
                        # What jobs say in the meantime appears above the prompt.
                        with patch_stdout():
                            text = await prompt.prompt_async(
                                self._question, bottom_toolbar=self._toolbar,
                                refresh_interval=TOOLBAR_S,
                            )  # fmt: skip
                    except KeyboardInterrupt:
                        continue
                    except EOFError:
                        text = "exit"
                    await self.execute(text)
        except asyncio.CancelledError:
            return EXIT_TERMINATED
        finally:
            await self._jobs.cancel([])
        return EXIT_OK

    async def obey(self) -> int:
        """A script on standard input; jobs that it leaves behind are waited for."""
        lines = standard_input.Lines()
        try:
            while not self._leaving and (text := await lines.next()) is not None:
                await self.execute(text)
            code = await self._jobs.wait([])
        finally:
            await self._jobs.cancel([])
        return code or self._last_code

    def _question(self) -> str:
        return f"pydi:{portable.text_of(self._session.cwd)}> "

    def _toolbar(self) -> str | None:
        running = self._jobs.running()
        return "\n".join(job.text() for job in running) if running else None

    def _tell(self, job: Job) -> None:
        print(job.text(), flush=True)

    # --- running them ----------------------------------------------------------------------------

    async def execute(self, text: str) -> None:
        """All commands of a line, one after the other. Whatever goes wrong is told."""
        if text.lstrip().startswith("!"):
            self._last_code = await self._guarded(self._local_program(text.lstrip()[1:]))
            return
        try:
            lines = words.split(text, portable.IS_WINDOWS)
        except LineError as exc:
            warn(str(exc))
            self._last_code = EXIT_USAGE
            return
        for line in lines:
            self._last_code = await self._guarded(self._command(line))

    async def _guarded(self, work: Awaitable[int]) -> int:
        """The exit code of ``work``, which Ctrl-C ends."""
        task = asyncio.ensure_future(_told(work))
        try:
            with programs.on_interrupt(task.cancel):
                await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            await asyncio.wait([task])
            raise
        if task.cancelled():
            print(file=sys.stderr)
            return cli.EXIT_INTERRUPTED
        return task.result()

    async def _command(self, line: Line) -> int:
        name, texts = line.words[0].text, line.texts[1:]
        is_background = line.background
        if name in BACKGROUND and "--background" in texts:
            index = texts.index("--background") + 1
            line = Line(line.words[:index] + line.words[index + 1 :])
            is_background = True
        if is_background and name not in BACKGROUND:
            raise UserError(
                f"{name}: only {', '.join(BACKGROUND)} go on in the background", EXIT_USAGE
            )
        if name == "quit":  # as the clients of other stores call it
            name = "exit"
        if name in BUILTINS:
            return await BUILTINS[name].run(self, await self._expanded(line))
        if name not in cli.COMMANDS or name == "shell":
            raise UserError(f"{name}: no such command (help lists them)", EXIT_USAGE)
        try:
            parsed = self._parser.parse_args([name, *await self._expanded(line)])
        except SystemExit:  # --help has been printed
            return EXIT_OK
        cli.require_target(parsed)
        if any(name.replace("-", "_") in parsed for name in cli.CONNECTION_OPTIONS):
            raise UserError("the shell is connected: give such flags to pydi shell", EXIT_USAGE)
        if name == "put" and "-" in parsed.path[:-1]:
            raise UserError("put -: standard input belongs to the shell", EXIT_USAGE)
        is_drawn = self._is_interactive and not is_background
        progress = Progress(enabled=is_drawn, watched=self._is_interactive)
        session = replace(
            self._session, json="json" in parsed, progress=progress, exit_code=EXIT_OK
        )
        work = _run(name, session, parsed)
        if not is_background:
            return await work
        text = " ".join(map(words.quote, line.texts))
        job = self._jobs.start(text, _told(work), progress.text)
        print(f"[{job.number}]")
        return EXIT_OK

    async def _expanded(self, line: Line) -> list[str]:
        """Arguments, with each pattern replaced by what it fits."""
        name, given = line.words[0].text, line.words[1:]
        takes_value = value_flags(name)
        paths = [i for i, word in enumerate(given) if not word.text.startswith("-")]
        arguments: list[str] = []
        for index, word in enumerate(given):
            if word.text.startswith("-") or (index and given[index - 1].text in takes_value):
                arguments.append(word.text)
                continue
            is_last = index == paths[-1]
            is_local = name in completion.LOCAL_COMMANDS or (
                (name == "put" and not is_last) or (name == "get" and is_last)
            )
            if is_local:
                word = word.at_home(os.path.expanduser("~"))
                word = word.with_slashes() if portable.IS_WINDOWS else word
            if word.has_wildcards:
                arguments += await self._fitting(word, is_local)
            else:
                arguments.append(word.text)
        return arguments

    async def _fitting(self, word: Word, is_local: bool) -> list[str]:
        try:
            found = await wildcards.expand(
                word.pattern(),
                list_local if is_local else self.list_remote,
                has_drives=is_local and portable.IS_WINDOWS,
            )
        except wildcards.TooManyError as exc:
            raise UserError(str(exc)) from exc
        # One that begins with a dash must not be taken for a flag.
        return [f"./{p}" if p.startswith("-") else p for p in found] or [word.text]

    async def list_remote(self, path: str) -> list[tuple[str, bool]]:
        """(name, whether it is a directory) of what a directory of the tree holds."""
        try:
            async with asyncio.timeout(LIST_TIMEOUT_S):
                attr = await self._session.resolve(portable.bytes_of(path))
                entries = await self._session.entries(attr.ino) if attr.is_dir else []
        except (PydiError, TimeoutError):
            return []
        return [(portable.text_of(entry.name), entry.attr.is_dir) for entry in entries]

    # --- commands of its own ---------------------------------------------------------------------

    async def _cd(self, arguments: list[str]) -> int:
        _at_most(arguments, 1)
        session = self._session
        path = portable.bytes_of(arguments[0]) if arguments else b"/"
        if path == b"-":
            path = self._old_remote
        try:
            attr = await session.resolve(path)
            if not attr.is_dir:
                raise FileError(errno.ENOTDIR)
            await session.vfs.access(session.caller, attr.ino, os.X_OK)
        except FileError as exc:
            raise UserError(about(path, exc)) from exc
        self._old_remote = session.cwd
        # As in a shell: .. leads back to where one came from, also through a link.
        session.cwd = b"/" + posixpath.normpath(session.absolute(path)).lstrip(b"/")
        return EXIT_OK

    async def _pwd(self, arguments: list[str]) -> int:
        _at_most(arguments, 0)
        self._session.out(self._session.cwd)
        return EXIT_OK

    async def _lcd(self, arguments: list[str]) -> int:
        _at_most(arguments, 1)
        path = arguments[0] if arguments else os.path.expanduser("~")
        if path == "-":
            path = self._old_local
        here = os.getcwd()
        os.chdir(path)
        self._old_local = here
        print(os.getcwd())
        return EXIT_OK

    async def _lls(self, arguments: list[str]) -> int:
        tool = shutil.which("ls")
        if tool is not None:
            return await programs.run([tool, *arguments])
        for name in sorted(os.listdir(arguments[0] if arguments else ".")):
            print(name)
        return EXIT_OK

    async def _local_program(self, text: str) -> int:
        if portable.IS_WINDOWS:
            return await programs.run([os.environ.get("COMSPEC", "cmd"), "/c", text])
        return await programs.run([os.environ.get("SHELL", "/bin/sh"), "-c", text])

    async def _list_jobs(self, arguments: list[str]) -> int:
        _at_most(arguments, 0)
        for job in self._jobs.running():
            print(job.text())
        return EXIT_OK

    async def _wait(self, arguments: list[str]) -> int:
        return await self._jobs.wait(_numbers(arguments))

    async def _cancel(self, arguments: list[str]) -> int:
        await self._jobs.cancel(_numbers(arguments))
        return EXIT_OK

    async def _help(self, arguments: list[str]) -> int:
        for name in arguments:
            if name in BUILTINS:
                print(f"usage: {BUILTINS[name].usage}\n\n{BUILTINS[name].text}")
            elif name in cli.COMMANDS:
                try:
                    self._parser.parse_args([name, "--help"])
                except SystemExit:
                    pass  # it has been printed
            else:
                raise UserError(f"{name}: no such command", EXIT_USAGE)
        if not arguments:
            rows = {name: spec.help for name, spec in cli.COMMANDS.items() if name != "shell"}
            rows |= {builtin.usage: builtin.text for builtin in BUILTINS.values()}
            rows["!COMMAND"] = "a program of this machine"
            width = max(map(len, rows))
            print("\n".join(f"{name:<{width}}  {text}" for name, text in rows.items()))
            print(
                f"\nTab completes, * ? [] and quotes work as in a shell. {', '.join(BACKGROUND)}"
                " with & behind them, or --background,\ngo on while you work. help COMMAND tells"
                " more."
            )
        return EXIT_OK

    async def _exit(self, arguments: list[str]) -> int:
        _at_most(arguments, 0)
        running = self._jobs.running()
        if running and self._is_interactive:
            for job in running:
                print(job.text())
            what = "1 job is" if len(running) == 1 else f"{len(running)} jobs are"
            if not await self._agrees(f"{what} running. Leave and cancel? [y/N] "):
                return EXIT_OK
        self._leaving = True
        return self._last_code

    async def _agrees(self, question: str) -> bool:
        from prompt_toolkit import PromptSession

        try:
            answer = await PromptSession[str]().prompt_async(question)
        except (EOFError, KeyboardInterrupt):
            return False
        return answer.strip().lower() in ("y", "yes")


class _Builtin(NamedTuple):
    run: Builtin
    usage: str
    text: str


BUILTINS: Mapping[str, _Builtin] = {
    "cd": _Builtin(Shell._cd, "cd [PATH]", "go to a directory of the tree; - goes back"),
    "pwd": _Builtin(Shell._pwd, "pwd", "where in the tree"),
    "lcd": _Builtin(Shell._lcd, "lcd [PATH]", "go to a directory of this machine"),
    "lls": _Builtin(Shell._lls, "lls [ARGUMENT...]", "list a directory of this machine"),
    "jobs": _Builtin(Shell._list_jobs, "jobs", "what goes on in the background"),
    "wait": _Builtin(Shell._wait, "wait [JOB...]", "until jobs have ended"),
    "cancel": _Builtin(Shell._cancel, "cancel [JOB...]", "end jobs; --continue goes on with them"),
    "help": _Builtin(Shell._help, "help [COMMAND...]", "all commands, or one"),
    "exit": _Builtin(Shell._exit, "exit", "leave; so do quit and Ctrl-D"),
}


async def _run(name: str, session: Session, parsed: argparse.Namespace) -> int:
    try:
        await cli.COMMANDS[name].run(session, parsed)
    finally:
        session.progress.finish()
        sys.stdout.flush()
    return session.exit_code


async def _told(work: Awaitable[int]) -> int:
    """The exit code of ``work``; what went wrong is one sentence."""
    try:
        return await work
    except (PydiError, OSError) as exc:
        return cli.fail(exc)
    except Exception:
        # A bug must not take a person's running transfers along.
        log.exception("this command met a bug of PyDi")
        return EXIT_FAILED


def value_flags(name: str) -> set[str]:
    """Flags of a command whose next word is their value, and no path."""
    spec = cli.COMMANDS.get(name)
    if spec is None:
        return set()
    return {
        flag
        for argument in spec.arguments
        for flag in argument.names
        if flag.startswith("-") and argument.options.get("action") is None
    }


def _flags(name: str) -> list[str]:
    spec = cli.COMMANDS.get(name)
    found = [] if spec is None else [n for a in spec.arguments for n in a.names if n[:2] == "--"]
    return [*found, "--help", *(["--background"] if name in BACKGROUND else [])]


async def list_local(path: str) -> list[tuple[str, bool]]:
    """(name, whether it is a directory) of what a directory of this machine holds."""
    try:
        with os.scandir(path or ".") as entries:
            return [(entry.name, entry.is_dir()) for entry in entries]
    except OSError:
        return []


def _at_most(arguments: Sequence[str], count: int) -> None:
    if len(arguments) > count:
        raise UserError(f"{arguments[count]}: one argument too many", EXIT_USAGE)


def _numbers(arguments: Sequence[str]) -> list[int]:
    try:
        return [int(text.removeprefix("%")) for text in arguments]
    except ValueError:
        raise UserError("jobs have numbers: see jobs", EXIT_USAGE) from None


# --- the terminal --------------------------------------------------------------------------------


def _prompt_session(shell: Shell) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

    commands = [*(name for name in cli.COMMANDS if name != "shell"), *BUILTINS]
    flags = {name: _flags(name) for name in cli.COMMANDS}

    class _Completer(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Any:
            return ()  # only asynchronously: what completes it is asked of the cluster

        async def get_completions_async(
            self, document: Document, complete_event: CompleteEvent
        ) -> Any:
            text = document.text_before_cursor
            for found in await completion.suggest(
                text,
                commands,
                flags,
                shell.list_remote,
                lambda path: list_local(os.path.expanduser(path)),
            ):
                yield Completion(found.text, found.start - len(text), display=found.shown)

    return PromptSession(
        completer=_Completer(), complete_while_typing=False, history=_history(), mouse_support=False
    )


def _history() -> Any:
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = portable.state_dir(os.environ) / HISTORY_NAME
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | portable.O_PLAIN, 0o600))
    except OSError as exc:
        log.debug("no history: %s", exc)
        return InMemoryHistory()
    return FileHistory(str(path))
