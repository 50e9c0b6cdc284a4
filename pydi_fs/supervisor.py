"""The process that holds a mount while the one that serves it may die: restart under open files.

`mount_cli` runs it where the kernel can send requests again (Linux 6.9). It stays small: no loop,
no thread, no network, and it never touches the mount. A second child, the watch, makes the kernel
forget what a worker does not take back in time (`watching`).

    supervisor ── fork ──► worker: serves the mount
        │ holds /dev/fuse, the two logs of the journal, files of staged content
        │◄── "beat", "keep" + descriptor, "drop", "usable", "end" ── worker
        │ worker is dead, or silent: killed
        └─ fork ──► worker: reads the journal, has the kernel send again what was not answered

It has loaded and imported everything before the first fork, so that a successor is there within
milliseconds, and shares its memory with the worker until then: there is no standby process. An
upgrade is the same death on purpose, with exec(2) of the new code in between; the process id stays.

When the supervisor is killed the worker dies with it, and the mount: nothing is left behind that
nobody watches.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO, NoReturn

from pydi_fs.mountpoints import abort, mounted_at, unmount
from pydi_fs.restart_policy import BEAT_S, RestartPolicy, Watchdog
from pydi_fs.vfs.journal import FORMAT
from pydi_fs.watching import Bell, forget_everything
from pydi_fs.watching import run as run_watch
from pydi_node.errors import EXIT_FAILED, EXIT_OK, PydiError, UserError

log = logging.getLogger("pydi.mount")

# Names under which descriptors are kept: /dev/fuse, and the socket at which upgrades are asked for.
DEVICE = "device"
DOOR = "door"
MESSAGE_MAX_BYTES = 256
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # that end a mount
LISTEN_WAIT_S = 2.0  # for a supervisor to make room
KILL_WAIT_S = 5.0  # for a process that got SIGKILL
KILL_POLL_S = 0.01
# -P: no code out of the directory in which the mount was started.
_INSTALLED = (sys.executable, "-P", "-m", "pydi_fs")
CHECK_TIMEOUT_S = 30.0  # for the new code to say what it can read
UPGRADE_TIMEOUT_S = 60.0
RESENDS_SINCE_LINUX = (6, 9)
# Ends of a worker that are not its word but an accident of it.
_ACCIDENT = 70

_PR_SET_PDEATHSIG = 1
_UCRED = struct.Struct("3i")


class _Check:
    """The installed code is asked whether it can go on with a mount, while that is served."""

    def __init__(self, arguments: Sequence[str], asker: socket.socket) -> None:
        """OSError if it can't be run."""
        self.asker = asker
        self._end_s = time.monotonic() + CHECK_TIMEOUT_S
        self._said = [os.fdopen(os.memfd_create("pydi-check"), "rb") for _ in range(2)]
        self._process = subprocess.Popen(
            [*_INSTALLED, "--journal-format", *arguments],
            stdin=subprocess.DEVNULL, stdout=self._said[0], stderr=self._said[1],
        )  # fmt: skip
        self.pidfd = os.pidfd_open(self._process.pid)

    def is_over(self) -> bool:
        return self._process.poll() is not None or time.monotonic() >= self._end_s

    def end(self) -> str:
        """Why it can't; the empty string if it can."""
        if self._process.poll() is None:
            self._process.kill()
        code = self._process.wait()
        os.close(self.pidfd)
        output, errors = [_text_of(file) for file in self._said]
        if code < 0:
            return "the installed pydi-mount does not answer"
        if code != 0:
            last = errors.rpartition("\n")[2].removeprefix("pydi-mount: ")
            return f"the installed pydi-mount does not start: {last}"
        if output != str(FORMAT):
            return "the installed version can't go on with this one's open files: mount it anew"
        return ""


def _text_of(file: BinaryIO) -> str:
    with file:
        file.seek(0)
        return file.read().decode(errors="replace").strip()


class Link:
    """A worker's side: its line to the supervisor and what that keeps for it."""

    def __init__(
        self,
        line: socket.socket,
        logs: tuple[int, int],
        kept: dict[str, int],
        follows: bool,
        bell: Bell,
        nodeids: tuple[int, ...],
    ) -> None:
        self.bell = bell
        self.nodeids = nodeids  # whose attributes the kernel was told to keep by that one
        self.logs = logs
        self.kept = kept  # descriptors by name, in this process
        self.follows = follows  # another worker, which died
        self.serves = False
        self._line = line
        self._unsent: deque[str] = deque()  # the line was full

    def keep(self, name: str, fd: int) -> None:
        """The supervisor has a copy of the descriptor when this returns, also if we die then.
        OSError if it takes none."""
        while True:
            try:
                socket.send_fds(self._line, [f"keep {name}".encode()], [fd])
            except BlockingIOError as exc:
                if not self._wait_room():
                    raise OSError(errno.EIO, "the mount's supervisor does not listen") from exc
            else:
                return

    def drop(self, name: str) -> None:
        self._send(f"drop {name}")

    def beat(self) -> None:
        if not self._unsent:
            self._unsent.append("beat")
        self._send_all()

    def usable(self, mountpoint: str) -> None:
        """It is mounted there and served. Upgrades may be asked for when this returns: whoever does
        waits in the socket's queue until the supervisor has heard of us."""
        self.serves = True
        if DOOR in self.kept:
            os.close(self.kept.pop(DOOR))
        else:
            with contextlib.suppress(OSError), _door(mountpoint) as door:
                self.keep(DOOR, door.fileno())
        self._send("usable")

    def ended(self, code: int) -> None:
        """Nobody shall follow. The last word."""
        self._send(f"end {code}")
        while self._unsent and self._wait_room():
            self._send_all()

    def _send(self, word: str) -> None:
        self._unsent.append(word)
        self._send_all()

    def _send_all(self) -> None:
        """What the line takes; the rest goes with what comes next. A supervisor that is stopped
        reads nothing, which must not stop us; a drop that got lost would hold its file for ever."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                self._line.send(self._unsent[0].encode())
                self._unsent.popleft()

    def _wait_room(self) -> bool:
        """The line holds some 280 words, which a busy worker may say before it is heard."""
        poll = select.poll()
        poll.register(self._line, select.POLLOUT)
        return bool(poll.poll(LISTEN_WAIT_S * 1000))


Work = Callable[[Link], int]  # runs in the worker's process; its exit code


class Supervisor:
    """Of one mount.

    arguments  of the command line, to start the same again by from any directory: the one in which
               a person started it may be covered by the mount.
    forked     called in this process after the first worker was started.
    """

    def __init__(
        self,
        mountpoint: str,
        arguments: Sequence[str],
        work: Work,
        forked: Callable[[], None] = lambda: None,
    ) -> None:
        self._mountpoint = mountpoint
        self._arguments = list(arguments)
        self._work = work
        self._forked = forked
        self._policy = RestartPolicy()
        self._watchdog = Watchdog()
        self._logs = (os.memfd_create("pydi-journal"), os.memfd_create("pydi-journal"))
        self._bell = Bell()
        self._watch = 0  # its process; 0: there is none
        self._watch_pidfd = -1
        self._nodeids: tuple[int, ...] = ()  # whose attributes the kernel kept for a dead worker
        self._kept: dict[str, int] = {}
        self._worker = 0
        self._unburied: list[int] = []  # dead workers of which a thread is still in the kernel
        self._pidfd = -1
        self._started_s = self._heard_s = 0.0
        self._line: socket.socket | None = None
        self._code: int | None = None  # the worker's word that this is the end
        self._was_usable = False
        self._device = 0  # st_dev of what is mounted, once it is usable
        self._stopping = False
        self._check: _Check | None = None  # before one
        self._asker: socket.socket | None = None  # who asked for the one under way

    def resume(self, handed: dict[str, Any]) -> None:
        """Go on with what the supervisor before the exec(2) held; before `run`."""
        for fd in self._logs:
            os.close(fd)
        self._logs = (handed["logs"][0], handed["logs"][1])
        self._kept = dict(handed["kept"])
        self._asker = socket.socket(fileno=handed["asker"])
        for fd in (*self._logs, *self._kept.values(), self._asker.fileno()):
            os.set_inheritable(fd, False)
        self._was_usable = True
        self._device = handed.get("device", 0)  # a version before this key gave none
        if "nodeids" in handed:  # likewise
            self._nodeids = handed_over(handed["nodeids"])

    def run(self) -> int:
        """Returns when the mount has ended; the exit code."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # see `_on_checked`
        gc.collect()
        gc.freeze()  # what workers share with us is not touched by their collections
        try:
            return self._serve()
        finally:
            self._end_watch()

    def _serve(self) -> int:
        self._start()
        self._forked()
        while True:
            self._begin_watch()
            self._look()
            if self._worker:
                continue
            if self._code is not None:
                return self._code
            if not self._was_usable or DEVICE not in self._kept:
                return EXIT_FAILED
            if not self._policy.may_restart(self._heard_s - self._started_s):
                return self._give_up()
            log.warning("the mount on %s goes on in another process", self._mountpoint)
            self._start()

    # --- the worker -----------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        supervisor = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be_worker(supervisor, ours, theirs)
        theirs.close()
        ours.setblocking(False)
        self._worker, self._line = pid, ours
        self._pidfd = os.pidfd_open(pid)
        self._watchdog = Watchdog()
        self._started_s = self._heard_s = time.monotonic()

    def _be_worker(self, supervisor: int, ours: socket.socket, theirs: socket.socket) -> NoReturn:
        code = _ACCIDENT
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != supervisor:
                os._exit(_ACCIDENT)
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            ours.close()
            checked_for = None if self._check is None else self._check.asker
            for held in (self._asker, checked_for):
                if held is not None:
                    held.close()
            theirs.setblocking(False)
            self._leave_watch()
            link = Link(
                theirs, self._logs, dict(self._kept), follows=self._was_usable,
                bell=self._bell, nodeids=self._nodeids,
            )  # fmt: skip
            code = self._work(link)
            link.ended(code)
        except PydiError as exc:
            log.error("the mount on %s failed: %s", self._mountpoint, exc)
        except BaseException:
            log.exception("the mount on %s failed", self._mountpoint)
        finally:
            logging.shutdown()
            os._exit(code)

    def _look(self) -> None:
        """Wait until something happens, a beat's time at most."""
        assert self._line is not None
        poll = select.poll()
        poll.register(self._line, select.POLLIN)
        poll.register(self._pidfd, select.POLLIN)
        if self._check is not None:
            poll.register(self._check.pidfd, select.POLLIN)
        elif DOOR in self._kept:
            poll.register(self._kept[DOOR], select.POLLIN)
        if self._watch:
            poll.register(self._watch_pidfd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(BEAT_S * 1000)}
        self._reap()
        # First what it said: its last words may have come with its death.
        self._hear()
        if self._pidfd in ready:
            self._bury()
        elif not ready and _is_dead(self._worker):
            # A thread of it waits in the kernel, for an answer that its successor gives. Nothing of
            # it runs any more but that.
            log.info("process %d ends later", self._worker)
            self._bury()
        elif not ready and self._watchdog.looked():
            log.warning("the process of the mount on %s hangs: killed", self._mountpoint)
            self._kill()
        elif self._check is not None and self._check.is_over():
            check, self._check = self._check, None
            self._on_checked(check.asker, check.end())
        elif self._kept.get(DOOR) in ready:
            self._serve_door()
        if self._watch and self._watch_pidfd in ready:
            self._end_watch()  # somebody killed it: another one begins at once

    def _hear(self) -> None:
        assert self._line is not None
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self._line, MESSAGE_MAX_BYTES, 1)
            except BlockingIOError:
                return
            except ConnectionResetError:
                return
            if not data:
                return
            self._watchdog.heard()
            self._heard_s = time.monotonic()
            word, _, name = data.decode().partition(" ")
            if word == "keep":
                self._let_go(name)
                self._kept[name] = fds[0]
            elif word == "drop":
                self._let_go(name)
                if name == DEVICE:
                    self._end_watch()
            elif word == "end":
                self._code = int(name)
            elif word == "usable":
                self._on_usable()

    def _let_go(self, name: str) -> None:
        fd = self._kept.pop(name, -1)
        if fd >= 0:
            os.close(fd)

    def _on_usable(self) -> None:
        self._was_usable = True
        if not self._device:
            mounted = mounted_at(os.fsencode(self._mountpoint))
            self._device = 0 if mounted is None else mounted.device
        if self._stopping:
            os.kill(self._worker, signal.SIGTERM)
        if self._asker is not None:
            _answer(self._asker, "")
            self._asker = None

    def _bury(self) -> None:
        """The worker is dead: its words are heard, its line closed."""
        assert self._line is not None
        self._hear()
        self._unburied.append(self._worker)
        self._reap()
        os.close(self._pidfd)
        self._line.close()
        self._worker, self._pidfd, self._line = 0, -1, None
        self._take_back()

    def _take_back(self) -> None:
        """The kernel forgets what the worker told it: nobody else will tell it of changes."""
        page = self._bell.page
        self._nodeids = tuple(page.nodeids())
        if DEVICE in self._kept:
            forget_everything(self._kept[DEVICE], self._nodeids)
        page.clear()

    def _begin_watch(self) -> None:
        if self._watch or DEVICE not in self._kept:
            return
        supervisor = os.getpid()
        pid = os.fork()
        if pid == 0:
            # It must not hold what others let go.
            for fd in (*self._logs, *(fd for name, fd in self._kept.items() if name != DEVICE)):
                os.close(fd)
            checked_for = None if self._check is None else self._check.asker
            for held in (self._line, self._asker, checked_for):
                if held is not None:
                    held.close()
            run_watch(self._bell, self._kept[DEVICE], supervisor)
        self._watch, self._watch_pidfd = pid, os.pidfd_open(pid)

    def _end_watch(self) -> None:
        if self._watch:
            os.kill(self._watch, signal.SIGKILL)
            os.waitpid(self._watch, 0)
            self._leave_watch()

    def _leave_watch(self) -> None:
        if self._watch:
            os.close(self._watch_pidfd)
            self._watch, self._watch_pidfd = 0, -1

    def _reap(self) -> None:
        """Those of the dead that have ended are no zombies any more."""
        for pid in list(self._unburied):
            try:
                ended, _ = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended = pid
            if ended:
                self._unburied.remove(pid)

    def _kill(self) -> None:
        os.kill(self._worker, signal.SIGKILL)
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        end_s = time.monotonic() + KILL_WAIT_S
        while not poll.poll(KILL_POLL_S * 1000) and not _is_dead(self._worker):
            if time.monotonic() >= end_s:
                log.error("process %d can't be killed", self._worker)
                break
        self._bury()

    def _give_up(self) -> int:
        log.error(
            "the processes of the mount on %s die one after the other: it is unmounted, and its"
            " programs get errors; what they had not closed or synced is lost",
            self._mountpoint,
        )
        # A thread of a dead worker may wait in the kernel for ever and hold the device.
        aborted = abort(self._device)
        path = os.fsencode(self._mountpoint)
        mounted = mounted_at(path)
        if mounted is None or mounted.device != self._device:
            sentence = "" if mounted is None else "something else is mounted over it"
        else:
            sentence = unmount(path, lazy=True, force=not aborted)
        if sentence:
            log.error("%s could not be unmounted: %s", self._mountpoint, sentence)
        return EXIT_FAILED

    def _on_signal(self, number: int, _frame: object) -> None:
        self._stopping = True
        if self._worker and self._was_usable:
            os.kill(self._worker, number)
        elif self._worker:
            os.kill(self._worker, signal.SIGTERM)

    # --- upgrades -------------------------------------------------------------------------------

    def _serve_door(self) -> None:
        try:
            with socket.socket(fileno=os.dup(self._kept[DOOR])) as door:
                asker, _ = door.accept()
        except OSError:
            return
        if _peer_uid(asker) not in (0, os.geteuid()):
            asker.close()
            return
        if DEVICE not in self._kept:
            sentence = "this kernel can't hand a mount from one process to another: mount it anew"
            self._on_checked(asker, sentence)
            return
        try:
            # Not waited for here: the worker must be heard, or its programs get errors.
            self._check = _Check(self._arguments, asker)
        except OSError as exc:
            self._on_checked(asker, f"the installed pydi-mount can't be run: {exc}")

    def _on_checked(self, asker: socket.socket, sentence: str) -> None:
        if not sentence:
            # From here to the first moment of the code to come a signal waits: it would kill that.
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            if self._stopping:
                sentence = "the mount is about to end"
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        if sentence:
            log.warning("not upgraded: %s", sentence)
            _answer(asker, sentence)
        else:
            self._upgrade(asker)

    def _upgrade(self, asker: socket.socket) -> None:
        log.info("the mount on %s goes on with the installed version", self._mountpoint)
        self._kill()
        if self._code is not None:
            _answer(asker, "the mount has just ended")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            return
        nodeids = hand_over(self._nodeids)
        handed = {
            "mountpoint": self._mountpoint,
            "device": self._device,
            "logs": self._logs,
            "kept": self._kept,
            "asker": asker.fileno(),
            "nodeids": nodeids,
        }
        # Once more, for what was on its way; whoever comes does it again.
        forget_everything(self._kept[DEVICE], self._nodeids)
        self._end_watch()
        fds = (*self._logs, *self._kept.values(), asker.fileno(), nodeids)
        for fd in fds:
            os.set_inheritable(fd, True)
        command = [*_INSTALLED, *self._arguments]
        try:
            sys.stderr.flush()
            os.execv(sys.executable, [*command, "--resume", json.dumps(handed)])
        except OSError as exc:
            # Nothing has happened yet: this version goes on.
            log.error("could not start the installed version: %s", exc)
            for fd in fds:
                os.set_inheritable(fd, False)
            os.close(nodeids)
            _answer(asker, f"the installed version could not be started: {exc}")
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def is_possible() -> bool:
    """Whether this kernel is new enough for one process to follow another under a mount."""
    numbers = os.uname().release.replace("-", ".").split(".")
    try:
        return (int(numbers[0]), int(numbers[1])) >= RESENDS_SINCE_LINUX
    except (IndexError, ValueError):
        return False


def hand_over(nodeids: Sequence[int]) -> int:
    """A file in memory, for the code that comes: too many for an argument."""
    fd = os.memfd_create("pydi-nodeids")
    with open(fd, "wb", closefd=False) as file:
        file.write(array("Q", nodeids).tobytes())
    return fd


def handed_over(fd: int) -> tuple[int, ...]:
    """What was given to `hand_over`. Closes the file."""
    with open(fd, "rb") as file:
        file.seek(0)
        return tuple(array("Q", file.read()))


def door_of(device: int) -> str:
    """The abstract address at which the supervisor of that mount takes wishes: no file remains."""
    return f"\0pydi-mount/{os.major(device)}:{os.minor(device)}"


def _door(mountpoint: str) -> socket.socket:
    """Listens for wishes about what is mounted there. OSError, logged, if it can't."""
    mounted = mounted_at(os.fsencode(mountpoint))
    door = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    door.setblocking(False)
    try:
        if mounted is None:
            raise OSError(errno.ENOENT, "nothing is mounted there")
        door.bind(door_of(mounted.device))
        door.listen()
    except OSError as exc:
        log.info("no upgrades of this mount: %s", exc)
        door.close()
        raise
    return door


def ask_for_upgrade(mountpoint: str) -> int:
    """The mount goes on with the installed version when this returns. UserError why it does not."""
    path = os.path.realpath(os.path.dirname(os.path.abspath(mountpoint)))
    path = os.path.join(path, os.path.basename(os.path.abspath(mountpoint)))
    mounted = mounted_at(os.fsencode(path))
    if mounted is None or not mounted.fstype.startswith("fuse"):
        raise UserError(f"{mountpoint}: PyDi is not mounted there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as line:
        line.settimeout(UPGRADE_TIMEOUT_S)
        try:
            line.connect(door_of(mounted.device))
            if _peer_uid(line) not in (0, os.geteuid()):
                raise UserError(f"{mountpoint}: another user's mount")
            answer = line.recv(MESSAGE_MAX_BYTES * 16)
        except ConnectionRefusedError as exc:
            raise UserError(
                f"{mountpoint}: this mount has no supervisor: unmount it and mount it again"
            ) from exc
        except TimeoutError as exc:
            raise UserError(f"{mountpoint}: no answer; see the mount's log") from exc
    if not answer:
        raise UserError(f"{mountpoint}: the mount ended meanwhile, or is another user's")
    sentence = json.loads(answer)["sentence"]
    if sentence:
        raise UserError(sentence)
    return EXIT_OK


def _is_dead(pid: int) -> bool:
    """Whether the process has died, if not all of its threads: one may be in the kernel, and until
    it comes back the process can't be waited for."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def _answer(asker: socket.socket, sentence: str) -> None:
    with asker, contextlib.suppress(OSError):
        asker.send(json.dumps({"sentence": sentence}).encode())


def _peer_uid(line: socket.socket) -> int:
    raw = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    uid: int = _UCRED.unpack(raw)[1]
    return uid
