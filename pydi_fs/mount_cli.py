"""``pydi-mount``: parse, go to the background, mount, wait, unmount; one sentence when it can't.

Three processes. The one a person starts runs a second one of itself in a session of its own
(``--foreground --report-fd N``) and waits on a pipe until that says "usable" or why not; then it
exits with 0, or with the sentence and the exit code. A new process rather than a fork, because
nothing that was loaded or opened before (an event loop, threads, libfuse) survives a fork whole.
That second one is the `supervisor` of a third, which serves the mount, where the kernel lets
another process go on with a mount; otherwise it serves the mount itself.

libfuse is loaded only when the fusepy driver is chosen, and nothing of a driver before the mount
point has been looked at.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import fcntl
import functools
import gc
import importlib
import json
import logging
import os
import resource
import secrets
import signal
import stat
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

from pydi_fs import mount_config
from pydi_fs.client import Client
from pydi_fs.client.descriptors import SOCKET_NAME, DescriptorClient
from pydi_fs.commands_connect import ways_of
from pydi_fs.mount_config import CONFIG_FILE_NAME, OPTIONS, MountConfig
from pydi_fs.mount_options import MountOptions
from pydi_fs.mountpoints import Mounted, mounted_at, unmount
from pydi_fs.restart_policy import BEAT_S
from pydi_fs.supervisor import DEVICE, Link, Supervisor, ask_for_upgrade, is_possible
from pydi_fs.vfs.blob_cache import BlobCache
from pydi_fs.vfs.core import VfsConfig
from pydi_fs.vfs.journal import FORMAT, State
from pydi_fs.vfs.journalling import STAGE_PREFIX, Journal, KeptJournal
from pydi_fs.vfs.past import PastVfs
from pydi_fs.vfs.staging import Lender
from pydi_fs.vfs.vfs import Vfs
from pydi_node import __version__, portable
from pydi_node.errors import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_UNREACHABLE,
    EXIT_USAGE,
    PydiError,
    UserError,
)
from pydi_node.ids import ClientId
from pydi_node.wire.messages import Role

log = logging.getLogger("pydi.mount")

PROGRAM = "pydi-mount"
FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"
LOG_BYTES_MAX = 8 << 20  # of one mount's log; at its start an older one is kept beside it
ANSWER_TIMEOUT_S = 5.0  # a mount that does not answer stat(2) in this time hangs
START_MARGIN_S = 30.0  # for all of the start but reaching the cluster
# `pydi-node & pydi-mount`, in a script or at boot: a node takes a second or two until it listens.
NODE_START_WAIT_S = 5.0
NODE_START_POLL_S = 0.1
# A mount makes few garbage cycles and holds many records: collecting often costs up to 2.4 times
# the time of a request (measured: stat of 100,000 files), collecting never could grow for ever.
GC_THRESHOLDS = (50_000, 20, 50)


class Binding(Protocol):
    """What `KernelBinding` and `FusepyBinding` have in common, but for `take_over`."""

    async def mount(self) -> None: ...
    def take_over(self, fd: int, kept: Sequence[int] = ()) -> None: ...
    async def wait_unmounted(self) -> None: ...
    async def unmount(self) -> None: ...


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse prints the whole usage; a person needs the one sentence."""
        raise UserError(f"{message} (see {self.prog} --help)", EXIT_USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The flags, out of the same table as environment and config file."""
    parser = _Parser(
        prog=PROGRAM,
        description="Show the tree of a PyDi cluster as a folder. Returns when it can be used.",
        epilog="Each option can also be set in the environment (--cache-dir: PYDI_CACHE_DIR) or in"
        f" a TOML file; {CONFIG_FILE_NAME} in the data directory is read when it exists."
        " Unmount with umount MOUNTPOINT, or fusermount3 -u MOUNTPOINT.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"pydi {__version__}")
    parser.add_argument("--config", metavar="FILE", help="read options from this file")
    parser.add_argument("--report-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--resume", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    parser.add_argument(
        "--upgrade", action="store_true",
        help="let the mount at MOUNTPOINT go on with the version installed now; programs with open"
        " files notice nothing",
    )  # fmt: skip
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    for option in OPTIONS:
        names = [option.flag] if option.flag else [f"--{option.name}"]
        if option.metavar is None:
            parser.add_argument(
                *names, action="store_const", const="yes", dest=option.name, help=option.help
            )
        else:
            parser.add_argument(
                *names,
                metavar=option.metavar,
                dest=option.name,
                help=option.help.replace("%", "%%"),
                action="append" if option.flag == "-o" else "store",
            )
    return parser


class Start(NamedTuple):
    """How this process was started, beside what the mount is told."""

    report_fd: int | None  # where somebody waits for the outcome
    resume: dict[str, Any] | None  # what a supervisor before exec(2) held
    upgrade: bool
    directory: str  # in which paths are meant. Not entered: by now the mount may cover it


def parse_config(arguments: Sequence[str]) -> tuple[MountConfig, Start]:
    """The configuration for these arguments in this process's environment, and what it is for.

    UserError says what can't be used.
    """
    values = vars(build_parser().parse_args(arguments))
    config_file = values.pop("config") or os.environ.get("PYDI_CONFIG")
    directory = values.pop("directory") or os.getcwd()
    held = values.pop("resume")
    resume = None if held is None else json.loads(held)
    start = Start(values.pop("report_fd"), resume, values.pop("upgrade"), directory)
    mountpoint: str = values.pop("mountpoint")
    flags = {
        name: ",".join(value) if isinstance(value, list) else value
        for name, value in values.items()
        if value is not None
    }
    uid = os.geteuid()
    # The data directory decides where the file is looked for, so it is picked without the file.
    near = mount_config.pick(flags, os.environ, {}, "")
    data_dir = near["data-dir"][1] if "data-dir" in near else None
    default = os.path.join(data_dir or portable.data_dir(os.environ, uid), CONFIG_FILE_NAME)
    path = os.path.normpath(os.path.join(directory, config_file or default))
    if resume is not None and Path(path).is_relative_to(resume["mountpoint"]):
        in_file = {}  # was none, see below; who looked now would wait for an answer of its own
    else:
        in_file = _read_config_file(path, named=config_file is not None)
    if in_file and not start.upgrade:
        place = os.path.normpath(os.path.join(directory, mountpoint))
        _check_not_below(place, "configuration", path, "move it")
    given = mount_config.pick(flags, os.environ, in_file, config_file or default)
    config = mount_config.build(mountpoint, given, os.environ, uid)
    return _with_absolute_paths(config, directory), start


def main(arguments: Sequence[str] | None = None) -> int:
    """Mounts; the exit code. With --foreground it returns after the unmount."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    report = Report(None)
    try:
        if not __debug__:
            raise UserError("PyDi checks itself with assertions: start it without python -O")
        if arguments[:1] == ["--journal-format"]:  # asked before an upgrade
            print(_format_for(parse_config(arguments[1:])[0]))
            return EXIT_OK
        config, start = parse_config(arguments)
        if start.upgrade:
            return ask_for_upgrade(config.mountpoint)
        report = Report(start.report_fd if start.resume is None else None)
        if not config.foreground:
            return start_in_background(config, arguments)
        code = serve(config, report, start, arguments)
    except UserError as exc:
        report.failed(str(exc), exc.exit_code)
        return exc.exit_code
    except PydiError as exc:
        report.failed(str(exc), EXIT_FAILED)
        return EXIT_FAILED
    except KeyboardInterrupt:
        # Before the mount took over the signals: nothing is mounted.
        return EXIT_FAILED
    logging.shutdown()
    # Not through the interpreter's own end: a detached mount's threads may still be inside libfuse,
    # and one that comes back from C into a half-dismantled interpreter crashes.
    os._exit(code)


# --- the process that returns ---------------------------------------------------------------------


def start_in_background(config: MountConfig, arguments: Sequence[str]) -> int:
    """Runs the mount as a process of its own; 0 when it is usable. UserError if it can't be."""
    log_file = log_path(config)
    with contextlib.ExitStack() as stack:
        log_fd = _open_log(log_file)
        stack.callback(os.close, log_fd)
        # Of two commands for one mount point the second looks after the first is done. A descriptor
        # of its own, because a lock lives as long as any process that inherited it.
        lock_fd = _open_log(log_file)
        stack.callback(os.close, lock_fd)
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        read_fd, write_fd = os.pipe()
        reader = stack.enter_context(open(read_fd, "rb"))
        try:
            # -P: no code out of the directory in which a person happens to be.
            daemon = subprocess.Popen(
                [sys.executable, "-P", "-m", "pydi_fs",
                 "--foreground", "--report-fd", str(write_fd), *arguments],
                stdin=subprocess.DEVNULL, stdout=log_fd, stderr=log_fd,
                pass_fds=(write_fd,), start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write_fd)
        answer: list[bytes] = []
        # The pipe's end is closed by the report, or by the death of the process.
        waiter = threading.Thread(target=lambda: answer.append(reader.read()), daemon=True)
        waiter.start()
        try:
            waiter.join(config.deadline_s + START_MARGIN_S)
        except KeyboardInterrupt:
            daemon.terminate()
            raise
        if waiter.is_alive():
            daemon.kill()
            waiter.join()
            raise UserError(f"the mount did not become usable in time; see {log_file}")
    if not answer or not answer[0]:
        raise UserError(f"the mount ended before it was usable; see {log_file}")
    outcome = json.loads(answer[0])
    if outcome["exit_code"] != EXIT_OK:
        daemon.wait(timeout=START_MARGIN_S)
        raise UserError(outcome["sentence"], outcome["exit_code"])
    daemon.returncode = EXIT_OK  # it lives on; nobody here will ask for its exit code
    return EXIT_OK


class Report:
    """Says how the start went: to the waiting process, or to the person when there is none."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd

    def usable(self) -> None:
        self._send({"exit_code": EXIT_OK, "sentence": ""})

    def failed(self, sentence: str, exit_code: int) -> None:
        print(f"{PROGRAM}: {sentence}", file=sys.stderr)
        self._send({"exit_code": exit_code, "sentence": sentence})

    def _send(self, outcome: dict[str, Any]) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            os.write(fd, json.dumps(outcome).encode())
        except BrokenPipeError:
            pass  # whoever waited was stopped; the mount is as good without
        os.close(fd)

    def close(self) -> None:
        """Another process says it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


def log_path(config: MountConfig) -> Path:
    """One log for each mount point, in the cache directory."""
    name = config.mountpoint.strip("/").replace("/", "-") or "root"
    return Path(config.cache_dir) / f"mount-{name[-200:]}.log"


def _open_log(path: Path) -> int:
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the first start has none
            if path.stat().st_size > LOG_BYTES_MAX:
                path.replace(path.with_suffix(".old.log"))
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise UserError(f"cache directory {path.parent}: {exc.strerror}") from exc


# --- the process that stays -----------------------------------------------------------------------


def serve(
    config: MountConfig,
    report: Report,
    start: Start,
    arguments: Sequence[str],
) -> int:
    """Mounts and serves until unmounted or told to stop; the exit code. UserError if it can't.

    arguments  of the command line, for an upgrade.
    """
    handed = start.resume
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _allow_many_descriptors()
    configure_logging(config.debug)
    if handed is None:
        config = check_mountpoint(config)
    else:
        config = replace(config, mountpoint=handed["mountpoint"])
    binding_class = load_driver(config.driver)
    config = replace(config, driver=driver_name(config.driver), options=with_allow_other(config))
    os.chdir("/")  # keeps no file system busy that someone may want to unmount
    work = functools.partial(_work, config, binding_class, report, loop_factory())
    if config.driver != "kernel" or not is_possible():
        if config.driver == "kernel":
            log.info("restart under open files: off (it needs Linux 6.9)")
        return work(None)
    again = ["--directory", start.directory, *_of_the_person(arguments)]
    supervisor = Supervisor(config.mountpoint, again, work, forked=report.close)
    if handed is not None:
        supervisor.resume(handed)
    return supervisor.run()


def _format_for(config: MountConfig) -> int:
    """The format of the journal that a mount with this configuration goes on with. UserError if it
    could not."""
    load_driver(config.driver)
    if driver_name(config.driver) != "kernel":
        raise UserError(f"--driver {config.driver} can't go on with another one's open files")
    return FORMAT


def _of_the_person(arguments: Sequence[str]) -> list[str]:
    """Without what an upgrade put there, which is of no use for the next one."""
    kept = list(arguments)
    for flag in ("--resume", "--directory"):
        if flag in kept:
            at = kept.index(flag)
            del kept[at : at + 2]
    return kept


def _work(
    config: MountConfig, binding_class: Any, report: Report, loop_factory: Any, link: Link | None
) -> int:
    """Serve; the exit code. A successor that can't even begin dies of it: programs have open files,
    another one may do better, and after a few the supervisor unmounts."""
    portable.keep_freed_memory()
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(_serve(config, binding_class, report, link))
    except PydiError as exc:
        if link is None or (link.follows and not link.serves):
            raise
        code = exc.exit_code if isinstance(exc, UserError) else EXIT_FAILED
        report.failed(str(exc), code)
        return code


async def _serve(config: MountConfig, binding_class: Any, report: Report, link: Link | None) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    if link is not None:
        _beat(link)
    journal = Journal() if link is None else KeptJournal(link.logs, link.keep, link.drop)
    # For people: a mount point's name may be no text, a message's text always is.
    shown = os.fsencode(config.mountpoint).decode("utf-8", "replace")
    passes = config.driver == "kernel" and binding_class.may_pass(config.options)
    about = {"mountpoint": shown, "driver": config.driver, "passthrough": passes}
    state = journal.state
    identity = None if state is None else state.identity
    if link is not None:
        about["resume"] = key = identity.key if identity else secrets.token_bytes(16)
    if state is not None:
        config = replace(config, background=True)  # programs wait already
    client = await _connect(config, about, state)
    client.number = lambda command: journal.number(command, client.new_serial)
    files = _node_files(config)
    vfs = PastVfs(
        client,
        VfsConfig(
            Path(config.cache_dir) / "staging",
            lender=None if files is None else Lender(files.borrow),
            sources=() if files is None else (files,),
            cache=BlobCache(Path(config.cache_dir), config.cache_size),
            journal=journal,
            delegates=config.options.delegations and not config.options.read_only,
            closes_behind=config.options.closes_behind,
        ),
    )
    if link is not None and state is not None:
        vfs.restore(state, _stage_files(link))
    if isinstance(journal, KeptJournal):
        journal.begin(vfs.freeze)
        if identity is None:
            journal.identify(client.client_id, key)
    await vfs.start(client.is_connected)
    more = {}
    if link is not None:
        more = {
            "journal": journal,
            "keep": functools.partial(link.keep, DEVICE),
            "watch": (link.bell.page, link.bell.ring),
        }
    binding: Binding = binding_class(vfs, config.mountpoint, config.options, **more)
    try:
        if link is not None and link.follows:
            binding.take_over(link.kept.pop(DEVICE), link.nodeids)
        else:
            await binding.mount()
        try:
            if link is not None and link.follows:
                log.info("%s is served again", config.mountpoint)
            elif client.is_connected:
                await _wait_usable(config)
            else:
                log.info("no node answers yet: mounted, and waiting for one")
            gc.collect()
            gc.freeze()
            gc.set_threshold(*GC_THRESHOLDS)
            log.info("mounted at %s", config.mountpoint)
            if link is not None:
                link.usable(config.mountpoint)
            report.usable()
            await _first(binding.wait_unmounted(), stop.wait())
        finally:
            await binding.unmount()
            if link is not None:
                link.drop(DEVICE)  # it must not keep programs waiting that are cut off
        log.info("unmounted %s", config.mountpoint)
    finally:
        code = await _leave(vfs, client)
    return code


def _beat(link: Link) -> None:
    """As long as the loop runs, the supervisor hears of it."""
    link.beat()
    asyncio.get_running_loop().call_later(BEAT_S, _beat, link)


def _stage_files(link: Link) -> dict[int, int]:
    """Descriptors of staged content that the worker before had, by the number of the stage."""
    files = {}
    for name in [name for name in link.kept if name.startswith(STAGE_PREFIX)]:
        files[int(name.removeprefix(STAGE_PREFIX))] = link.kept.pop(name)
    return files


async def _connect(
    config: MountConfig, about: dict[str, Any], state: State | None = None
) -> Client:
    """A connected client; with ``-o bg`` it may still be trying.

    state  what the worker before this one left.

    A node that was started just before is waited for; UserError if there is none after
    NODE_START_WAIT_S.
    """
    loop = asyncio.get_running_loop()
    identity = None
    if state is not None and state.identity is not None:
        identity = (ClientId(state.identity.client), state.last_serial)
    may_wait = config.background
    end = loop.time() + (0.0 if may_wait else NODE_START_WAIT_S)
    while True:
        client: Client | None = None
        try:
            ways = ways_of(config)
            client = Client(
                *ways, role=Role.MOUNT, deadline_s=config.deadline_s, about=about, identity=identity
            )
            await client.connect()
            return client
        except UserError as exc:
            if client is not None:
                if may_wait and exc.exit_code == EXIT_UNREACHABLE:
                    return client
                await client.close()
            if exc.exit_code != EXIT_UNREACHABLE or loop.time() >= end:
                raise
        await asyncio.sleep(NODE_START_POLL_S)


def _node_files(config: MountConfig) -> DescriptorClient | None:
    """Files from and to a node of this machine; called in the loop."""
    if config.node is not None or Path(config.data_dir).is_relative_to(config.mountpoint):
        return None
    return DescriptorClient(Path(config.data_dir) / SOCKET_NAME)


async def _leave(vfs: Vfs, client: Client) -> int:
    """Publish what is left and end the session. What could not be published was never closed."""
    code = EXIT_OK
    try:
        await vfs.stop()
    except PydiError as exc:
        log.error("not everything that was open could be published: %s", exc)
        code = EXIT_FAILED
    await client.close()
    return code


async def _wait_usable(config: MountConfig) -> None:
    """A stat(2) through the mount is answered."""
    try:
        async with asyncio.timeout(config.deadline_s):
            await asyncio.to_thread(os.stat, config.mountpoint)
    except TimeoutError as exc:
        raise UserError(f"{config.mountpoint}: mounted, but it does not answer") from exc
    except OSError as exc:
        raise UserError(f"{config.mountpoint}: mounted, but unusable: {exc.strerror}") from exc


async def _first(*waits: Any) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _allow_many_descriptors() -> None:
    """Each file that the kernel reads by itself takes one here, as long as it is open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as exc:
        log.info("the number of descriptors stays limited: %s", exc)


def configure_logging(debug: bool) -> None:
    """All of PyDi's lines go to stderr, which is the log file of a mount in the background."""
    # Naming the thread would make the logging module keep a record of each of libfuse's threads.
    logging.logThreads = False
    formatter = logging.Formatter(
        "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pydi").setLevel(logging.DEBUG if debug else logging.INFO)


def driver_name(name: str) -> str:
    """What ``auto`` means on this system: only Linux speaks the kernel binding's protocol."""
    if name != "auto":
        return name
    return "kernel" if sys.platform == "linux" else "fusepy"


def load_driver(name: str) -> Any:
    """The binding's class; UserError with what to install when it can't be used here."""
    if sys.platform == "linux" and not os.path.exists(FUSE_DEVICE):
        raise UserError(
            f"there is no {FUSE_DEVICE}: load it with modprobe fuse (a container needs --device"
            f" {FUSE_DEVICE})"
        )
    if driver_name(name) == "kernel":
        if sys.platform != "linux":
            raise UserError("--driver kernel speaks Linux's protocol: use --driver fusepy")
        return importlib.import_module("pydi_fs.fuse").KernelBinding
    try:
        return importlib.import_module("pydi_fs.fusepy_binding").FusepyBinding
    except ModuleNotFoundError as exc:
        if exc.name != "fuse":
            raise
        raise UserError("--driver fusepy needs fusepy: pip install fusepy") from exc
    except OSError as exc:
        raise UserError(
            "--driver fusepy needs libfuse 2, which is not installed: apt install libfuse2"
            " (libfuse2t64 on newer systems; fuse-libs on Fedora; macFUSE on macOS)"
        ) from exc


# --- the mount point ------------------------------------------------------------------------------


def check_mountpoint(config: MountConfig) -> MountConfig:
    """The configuration with the mount point as the kernel names it, free to be mounted on.

    A mount whose daemon is dead is taken away first. UserError for everything else in the way.
    """
    above, name = os.path.split(config.mountpoint)
    path = os.path.join(os.path.realpath(above), name)
    while (mounted := mounted_at(os.fsencode(path))) is not None:
        _remove_if_dead(path, mounted)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such directory: create it with mkdir -p {path}") from exc
    except OSError as exc:
        raise UserError(f"{path}: {exc.strerror}") from exc
    if not stat.S_ISDIR(mode):
        raise UserError(f"{path}: not a directory")
    resolved = os.path.realpath(path)
    if resolved != path:
        return check_mountpoint(replace(config, mountpoint=resolved))
    _check_not_below(path, "cache directory", config.cache_dir,
                     "name another one with --cache-dir")  # fmt: skip
    if config.token_file is not None:
        _check_not_below(path, "token file", config.token_file, "move it")
    elif config.node is None and not config.has_token:
        _check_not_below(path, "data directory", config.data_dir, "mount somewhere else")
    if os.geteuid() != 0 and not os.access(path, os.W_OK):
        raise UserError(f"{path}: no permission: mount on a directory that you may write")
    return replace(config, mountpoint=path)


def _check_not_below(mountpoint: str, what: str, path: str, advice: str) -> None:
    """UserError if the mount would hide what it needs. It would wait for itself at best; at worst
    its processes would hold files of their own mount, and could not even be killed: close(2) at
    their end waits for an answer, and their open device lets the kernel hope for one."""
    above, name = os.path.split(mountpoint)
    if Path(os.path.realpath(path)).is_relative_to(os.path.join(os.path.realpath(above), name)):
        raise UserError(
            f"the {what} {path} lies below the mount point {mountpoint}: {advice}", EXIT_USAGE
        )


def _remove_if_dead(path: str, mounted: Mounted) -> None:
    """UserError unless the mount's daemon is dead and the mount could be taken away."""
    if not mounted.fstype.startswith("fuse"):
        raise UserError(f"{path}: already a mount point ({mounted.fstype} of {mounted.source})")
    alive = _answers(path)
    if alive is None:
        raise UserError(f"{path}: mounted, and its daemon does not answer: umount -f -l {path}")
    if alive:
        what = "PyDi is" if mounted.fstype == "fuse.pydi" else f"a {mounted.fstype} is"
        raise UserError(f"{path}: {what} already mounted there: umount {path} first")
    log.info("taking away the mount of a daemon that died at %s", path)
    sentence = unmount(os.fsencode(path), lazy=True)
    if sentence:
        raise UserError(f"{path}: a dead mount can't be taken away: {sentence}")


def _answers(path: str) -> bool | None:
    """Whether the daemon behind a mount lives; None when it hangs."""
    outcome: list[bool] = []

    def ask() -> None:
        try:
            # Not stat(2): the kernel may answer that from its cache when the daemon is dead.
            os.statvfs(path)
        except OSError as exc:
            # Only these say that nobody is there; any other errno was somebody's answer.
            outcome.append(exc.errno not in (errno.ENOTCONN, errno.ECONNABORTED))
        else:
            outcome.append(True)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_TIMEOUT_S)
    return outcome[0] if outcome else None


def with_allow_other(config: MountConfig) -> MountOptions:
    """The options; other users may enter by default where the system permits it.

    default_permissions makes the kernel check modes and owners, so letting others in is what they
    expect of a folder.
    """
    options = config.options
    if config.allow_other_given or not options.default_permissions:
        return options
    return replace(options, allow_other=os.geteuid() == 0 or _users_may_allow_other())


def _users_may_allow_other() -> bool:
    try:
        lines = Path(FUSE_CONF).read_text("utf-8", "replace").splitlines()
    except OSError:
        return False  # as fusermount: without the file nobody may
    return any(line.strip() == "user_allow_other" for line in lines)


# --- small things ---------------------------------------------------------------------------------


def _with_absolute_paths(config: MountConfig, directory: str) -> MountConfig:
    def absolute(path: str) -> str:
        return os.path.normpath(os.path.join(directory, path))

    return replace(
        config,
        mountpoint=absolute(config.mountpoint),
        data_dir=absolute(config.data_dir),
        cache_dir=absolute(config.cache_dir),
        token_file=absolute(config.token_file) if config.token_file else None,
    )


def _read_config_file(path: str, named: bool) -> dict[str, str]:
    """named  by a person: it has to be there."""
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError as exc:
        if not named:
            return {}
        raise UserError(f"--config {path}: no such file", EXIT_USAGE) from exc
    except tomllib.TOMLDecodeError as exc:
        raise UserError(f"{path}: not a TOML file: {exc}", EXIT_USAGE) from exc
    except PermissionError as exc:
        if not named:
            return {}  # another user's data directory: its node may still be reachable
        raise UserError(f"{path}: {exc.strerror}", EXIT_USAGE) from exc
    except OSError as exc:
        raise UserError(f"{path}: {exc.strerror}", EXIT_USAGE) from exc
    return mount_config.check_file_table(table, path)


def loop_factory() -> Any:
    """What makes a mount's event loop."""
    try:
        return importlib.import_module("uvloop").new_event_loop
    except ModuleNotFoundError:
        return asyncio.new_event_loop  # no wheel for this platform; slower, otherwise the same
