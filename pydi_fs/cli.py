"""``pydi``: a person's and a script's way into the tree without a mount.

Parses, connects, calls one command, prints, and turns every outcome into an exit code of errors.py:
0 done, 1 failed, 2 usage, 3 cluster not reachable. A user's mistake is one sentence, never a
traceback. What the commands do stands in the ``commands_*`` modules.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import io
import os
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pydi_fs import (
    commands_cluster,
    commands_copy,
    commands_doctor,
    commands_files,
    commands_history,
    commands_scrub,
    commands_status,
    commands_token,
    commands_tree,
    commands_why,
    mount_config,
)
from pydi_fs.commands_connect import connected
from pydi_fs.commands_offline import OFFLINE
from pydi_fs.commands_session import Session, warn
from pydi_fs.completion_scripts import SHELLS, Command
from pydi_fs.progress import Progress
from pydi_node import __version__, portable
from pydi_node.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    PydiError,
    UnavailableError,
    UserError,
)

PROGRAM = "pydi"
EXIT_INTERRUPTED = 130  # the shell's number for SIGINT

# Options that pydi shares with pydi-mount, taken from its table.
CONNECTION_OPTIONS = (
    "data-dir", "node", "token", "token-file", "group", "interface", "deadline",
)  # fmt: skip


class Argument(NamedTuple):
    """One argument of a command, as argparse wants it."""

    names: tuple[str, ...]
    options: dict[str, Any]


def _argument(*names: str, **options: Any) -> Argument:
    return Argument(names, options)


class CommandSpec(NamedTuple):
    """One row of the table of commands."""

    run: Callable[[Session, argparse.Namespace], Awaitable[None]]
    help: str
    arguments: tuple[Argument, ...] = ()
    examples: tuple[str, ...] = ()  # what a person may type, for --help and the manual


def _later(module: str, function: str) -> Callable[[Session, argparse.Namespace], Awaitable[None]]:
    """A command whose module is loaded when it runs: `pydi ls` must not wait for a shell."""

    async def run(session: Session, arguments: argparse.Namespace) -> None:
        await getattr(importlib.import_module(module), function)(session, arguments)

    return run


_RECURSIVE = _argument(
    "-r", "--recursive", action="store_true", help="directories and all below them"
)

_HERE = "default: where you are; outside the shell that is /"

_COPY_OPTIONS = (
    _argument("--continue", action="store_true", dest="resume",
              help="go on with what an interrupted copy left"),
    _argument("--mirror", action="store_true",
              help="-r, and remove from TARGET what SOURCE does not have"),
    _argument("--all", action="store_true", help="copy files of unchanged size and time too"),
)  # fmt: skip

COMMANDS: dict[str, CommandSpec] = {
    "ls": CommandSpec(
        commands_files.list_files,
        "list directories",
        (
            _argument("path", nargs="*", metavar="PATH", help=_HERE),
            _argument("-F", "--classify", action="store_true", help="a slash behind directories"),
            _argument("-l", "--long", action="store_true", help="modes, owners, sizes, times"),
            _argument("-d", "--directory", action="store_true", help="a directory itself"),
        ),
        ("pydi ls -l /photos", "pydi ls --json / | jq -r '.[].name'",),
    ),
    "tree": CommandSpec(
        commands_files.show_tree,
        "draw everything below a directory",
        (
            _argument("path", nargs="?", default=".", metavar="PATH", help=_HERE),
            _argument("-L", "--depth", type=int, metavar="N", help="at most so many levels"),
        ),
        ("pydi tree -L 2 /photos",),
    ),
    "cat": CommandSpec(
        commands_files.concatenate,
        "print files",
        (_argument("path", nargs="+", metavar="PATH"),),
        ("pydi cat /notes/today.txt",),
    ),
    "put": CommandSpec(
        commands_copy.put,
        "copy local files in; SOURCE - is standard input",
        (
            _argument("path", nargs="+", metavar="SOURCE... TARGET"),
            _RECURSIVE,
            *_COPY_OPTIONS,
        ),
        (
            "pydi put -r ~/photos /photos",
            "pydi put --mirror ~/work /backup/work",
            "tar c . | pydi put - /backup.tar",
        ),
    ),
    "get": CommandSpec(
        commands_copy.get,
        "copy files out; TARGET - is standard output",
        (
            _argument("path", nargs="+", metavar="SOURCE... TARGET"),
            _RECURSIVE,
            *_COPY_OPTIONS,
        ),
        (
            "pydi get -r /photos ~/photos",
            "pydi get --continue /big.iso .",
            "pydi get /backup.tar - | tar x",
        ),
    ),
    "mkdir": CommandSpec(
        commands_files.make_directories,
        "make directories",
        (
            _argument("path", nargs="+", metavar="PATH"),
            _argument("-p", "--parents", action="store_true", help="those above too"),
        ),
        ("pydi mkdir -p /photos/2026/march",),
    ),
    "mv": CommandSpec(
        commands_files.move,
        "rename, or move into a directory",
        (_argument("path", nargs="+", metavar="SOURCE... TARGET"),),
        ("pydi mv /draft.txt /final.txt", "pydi mv /a /b /archive",),
    ),
    "rm": CommandSpec(
        commands_files.remove,
        "remove files",
        (
            _argument("path", nargs="+", metavar="PATH"),
            _RECURSIVE,
            _argument("-f", "--force", action="store_true", help="what is missing is no error"),
        ),
        ("pydi rm /old.txt", "pydi rm -r /old",),
    ),
    "rmdir": CommandSpec(
        commands_tree.remove_directories,
        "remove empty directories",
        (_argument("path", nargs="+", metavar="PATH"),),
        ("pydi rmdir /photos/empty",),
    ),
    "cp": CommandSpec(
        commands_tree.copy,
        "copy inside the tree; costs no space",
        (
            _argument("path", nargs="+", metavar="SOURCE... TARGET"),
            _RECURSIVE,
            _argument("-p", "--preserve", action="store_true", help="modes and times as well"),
        ),
        ("pydi cp /plan.txt /plan-2.txt", "pydi cp -r /photos /photos-before"),
    ),
    "find": CommandSpec(
        commands_tree.find,
        "paths of what is below a directory",
        (
            _argument("path", nargs="*", metavar="PATH", help=_HERE),
            _argument("--name", metavar="PATTERN", help="whose name fits, as in a shell"),
            _argument("--type", choices=("f", "d", "l"), help="files, directories or links"),
            _argument("--larger", metavar="SIZE", help="than so many bytes: 512K, 10M"),
        ),
        ("pydi find /photos --name '*.jpg' --larger 10M",),
    ),
    "du": CommandSpec(
        commands_tree.disk_usage,
        "space that directories take",
        (
            _argument("path", nargs="*", metavar="PATH", help=_HERE),
            _argument("-s", "--summarize", action="store_true", help="only what was named"),
        ),
        ("pydi du -s /photos /music",),
    ),
    "df": CommandSpec(commands_tree.disk_free, "free space of the cluster", (), ("pydi df",)),
    "stat": CommandSpec(
        commands_tree.show_status,
        "all that is known of a file",
        (_argument("path", nargs="+", metavar="PATH"),),
        ("pydi stat /notes/today.txt",),
    ),
    "edit": CommandSpec(
        _later("pydi_fs.shell.edit", "run"),
        "change a text in $VISUAL, $EDITOR or a window",
        (
            _argument("path", metavar="PATH"),
            _argument("--binary", action="store_true", help="also what does not look like text"),
        ),
        ("pydi edit /notes/today.txt", "EDITOR=nano pydi edit /notes/today.txt"),
    ),
    "shell": CommandSpec(
        _later("pydi_fs.shell.console", "run"),
        "work in the tree by hand, with copies in the background",
        (),
        ("pydi shell", "echo 'put -r photos /' | pydi shell"),
    ),
    "top": CommandSpec(
        _later("pydi_fs.shell.top", "run"),
        "watch nodes, throughput and repair",
        (
            _argument(
                "--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks"
            ),
            _argument("--count", type=int, metavar="N", help="end after so many looks"),
        ),
        ("pydi top", "pydi top --json --count 2"),
    ),
    "log": CommandSpec(
        commands_history.log,
        "every version of a path that is kept",
        (
            _argument("path", metavar="PATH"),
            _argument("--at", metavar="TIME", help="look its directory up as of then"),
        ),
        ("pydi log /notes/today.txt",),
    ),
    "restore": CommandSpec(
        commands_history.restore,
        "make an older version the present one",
        (
            _argument("path", metavar="PATH"),
            _argument(
                "--at", metavar="TIME|INDEX", required=True,
                help="2026-03-01T12:30, 2h ago, or an index out of log",
            ),
        ),
        ("pydi restore /notes/today.txt --at '2h ago'",),
    ),
    "undelete": CommandSpec(
        commands_history.undelete,
        "bring back what was removed last under that name",
        (_argument("path", metavar="PATH"),),
        ("pydi undelete /notes/today.txt",),
    ),
    "status": CommandSpec(
        commands_status.status,
        "how the cluster is doing",
        examples=("pydi status", "pydi status --json",),
    ),
    "doctor": CommandSpec(
        commands_doctor.doctor,
        "why nodes do not see each other, or can't be reached",
        examples=("pydi doctor", "pydi doctor --token-file /etc/pydi/token"),
    ),
    "why": CommandSpec(
        commands_why.why,
        "what a file is made of, where that is, and what protects it",
        (_argument("path", metavar="PATH"),),
        ("pydi why /photos/2026/sea.jpg",),
    ),
    "scrub": CommandSpec(
        commands_scrub.scrub,
        "how far the nodes are with re-reading their content",
        (_argument("--now", action="store_true", help="read everything now, and wait for it"),),
        ("pydi scrub", "pydi scrub --now"),
    ),
    "set": CommandSpec(
        commands_cluster.set_,
        "show or change the cluster's settings",
        (_argument("setting", nargs="*", metavar="NAME[=VALUE]", help="default: show all"),),
        ("pydi set", "pydi set replicas=3"),
    ),
    "drain": CommandSpec(
        commands_cluster.drain,
        "empty a node: its content goes to the others",
        (
            _argument("number", type=int, metavar="N", help="of the node"),
            _argument("--stop", action="store_true", help="let it take content again"),
            _argument("--no-wait", action="store_true", help="return at once"),
        ),
        ("pydi drain 3", "pydi drain 3 --stop"),
    ),
    "token": CommandSpec(
        commands_token.token,
        "make, list and revoke tokens for mounts, or change the cluster's secret",
        (
            _argument(
                "action", choices=commands_token.ACTIONS, metavar="create|list|revoke|rotate"
            ),
            _argument("id", nargs="?", metavar="ID", help="of the token to revoke, or its start"),
            _argument("--mount", action="store_true", help="create: for mounts, the only kind"),
            _argument("--read-only", action="store_true", help="create: refuse every change"),
            _argument("--dir", default="/", metavar="PATH", help="create: only what is below it"),
            _argument("--expires", metavar="TIME", help="create: 12h, 30d, or never (never)"),
            _argument("--note", default="", metavar="TEXT", help="create: what list calls it"),
            _argument(
                "--overlap", metavar="TIME",
                help=f"rotate: how long old tokens go on ({commands_token.OVERLAP_DEFAULT})",
            ),
            _argument("--finish", action="store_true", help="rotate: old tokens end now"),
            _argument(
                "--force", action="store_true", help="rotate --finish: even if a node is away"
            ),
        ),
        (
            "pydi token create --mount --read-only --dir /photos --expires 30d",
            "pydi token list",
            "pydi token revoke 3f9a",
            "pydi token rotate --overlap 12h",
            "pydi token rotate --finish",
        ),
    ),
    "forget": CommandSpec(
        commands_cluster.forget,
        "take a node that is gone for ever out of the cluster",
        (
            _argument("number", type=int, metavar="N", help="of the node"),
            _argument("--force", action="store_true", help="even if it runs, or has last copies"),
        ),
        ("pydi forget 3",),
    ),
}  # fmt: skip

_NEEDS_TARGET = ("put", "get", "mv", "cp")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """What says itself how often it may come is not told a second time."""
        metavar = action.metavar
        if isinstance(metavar, str) and "..." in metavar:
            return metavar
        return super()._format_args(action, default_metavar)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse prints the whole usage; a person needs the one sentence."""
        raise UserError(f"{message} (see {self.prog} --help)", EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """All commands and flags; the connection's flags stand before or behind the command."""
    common = _Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for option in mount_config.OPTIONS:
        if option.name in CONNECTION_OPTIONS:
            common.add_argument(f"--{option.name}", metavar=option.metavar, help=option.help)
    common.add_argument("--json", action="store_true", help="output for programs")
    parser = _Parser(
        prog=PROGRAM,
        description="Work with a PyDi cluster without a mount.",
        epilog="Each flag that takes a value can also be set in the environment"
        " (--data-dir: PYDI_DATA_DIR).",
        parents=[common],
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pydi {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, examples: Sequence[str]) -> argparse.ArgumentParser:
        return commands.add_parser(
            name, help=text, description=text, parents=[common], allow_abbrev=False,
            formatter_class=_Formatter,
            epilog="\n  ".join(["examples:", *examples]),
        )  # fmt: skip

    for name, spec in COMMANDS.items():
        command = add(name, spec.help, spec.examples)
        for argument in spec.arguments:
            command.add_argument(*argument.names, **argument.options)
    for name, offline in OFFLINE.items():
        command = add(name, offline.help, offline.examples)
        for names, options in offline.arguments:
            command.add_argument(*names, **options)
    script = add(
        "completion",
        "a script for the shell that completes commands and paths",
        ("source <(pydi completion bash)", "pydi completion fish | source"),
    )
    script.add_argument("shell", choices=sorted(SHELLS), metavar="SHELL", help=" ".join(SHELLS))
    return parser


def completion_script(shell: str) -> str:
    """What `pydi completion SHELL` prints."""
    parser = build_parser()
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    known: dict[str, Command] = {}
    value_flags: dict[str, None] = {}
    for choice in action._choices_actions:
        command = action.choices[choice.dest]
        flags = {}
        for option in command._actions:
            for flag in option.option_strings:
                if flag.startswith("--"):
                    flags[flag] = option.help or ""
                if option.nargs != 0:
                    value_flags[flag] = None
        has_paths = any(option.dest == "path" for option in command._actions)
        known[choice.dest] = Command(choice.help or "", flags, has_paths)
    return SHELLS[shell](known, list(value_flags))


async def run(arguments: argparse.Namespace) -> int:
    """Connects, runs the command, disconnects; the exit code."""
    config = connection_config(vars(arguments), os.environ)
    progress = Progress(enabled=sys.stderr.isatty())
    is_connected = False
    try:
        async with connected(config, progress, json="json" in arguments) as session:
            is_connected = True
            try:
                await COMMANDS[arguments.command].run(session, arguments)
            finally:
                progress.finish()
    except (UserError, UnavailableError) as exc:
        if arguments.command != "doctor" or is_connected:
            raise
        return await commands_doctor.explain(config, exc, "json" in arguments)
    return session.exit_code


def connection_config(
    given: Mapping[str, str], environ: Mapping[str, str]
) -> mount_config.MountConfig:
    """Where the node is and how long to wait for it, by the rules of pydi-mount. UserError."""
    shared = [option for option in mount_config.OPTIONS if option.name in CONNECTION_OPTIONS]
    flags = {
        option.name: given[key]
        for option in shared
        if (key := option.name.replace("-", "_")) in given
    }
    # Variables that only a mount understands may hold what is none of our business.
    ours = {option.variable for option in shared}
    environ = {k: v for k, v in environ.items() if k in ours or not k.startswith("PYDI_")}
    picked = mount_config.pick(flags, environ, {}, "")
    return mount_config.build("", picked, environ, portable.identity().uid)


def run_offline(arguments: argparse.Namespace) -> int:
    """Runs a command on a stopped node's data directory; the exit code."""
    if portable.IS_WINDOWS:
        raise UserError(f"{arguments.command} works on a node's files: run it on its machine")
    given = {k: v for k, v in vars(arguments).items() if k not in ("token", "token_file")}
    if "node" in given:
        raise UserError(
            f"{arguments.command} works on files of this machine: no --node", EXIT_USAGE
        )
    if arguments.directory is not None:
        given["data_dir"] = arguments.directory
    data_dir = connection_config(given, os.environ).data_dir
    return OFFLINE[arguments.command].run(Path(data_dir), arguments)


def require_target(parsed: argparse.Namespace) -> None:
    """UserError (usage) for a copy or move to nowhere."""
    if parsed.command in _NEEDS_TARGET and len(parsed.path) < 2:
        raise UserError(f"{parsed.command}: SOURCE and TARGET are needed", EXIT_USAGE)


def fail(error: PydiError | OSError) -> int:
    """Tells a person why a command failed; its exit code."""
    warn(str(error))
    match error:
        case UserError():
            return error.exit_code
        case UnavailableError():
            return EXIT_UNREACHABLE
        case _:
            return EXIT_FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A console may lack characters that names have; content never passes through here.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if not __debug__:
            raise UserError("PyDi checks itself with assertions: start it without python -O")
        parsed = build_parser().parse_args(sys.argv[1:] if arguments is None else arguments)
        require_target(parsed)
        if parsed.command == "completion":
            sys.stdout.write(completion_script(parsed.shell))
            return EXIT_OK
        is_offline = parsed.command in OFFLINE
        exit_code = run_offline(parsed) if is_offline else asyncio.run(run(parsed))
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:
        # Whoever read our output has seen enough; the interpreter's last flush must not complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (PydiError, OSError) as exc:
        return fail(exc)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
