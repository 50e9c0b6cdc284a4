"""A program that does a bit of everything in a folder and compares with what must be there.

Run as ``python load_of_everything.py FOLDER SEED COUNTER``. It ends with 0 when standard input
ends; any error, or anything that is not as it must be, ends it with a traceback. Each run has names
of its own; COUNTER is a file that all runs increment under flock(2). The last line on standard
output is the number of increments.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import sys
from collections.abc import Callable


class Load:
    """The folder as it must be: ``files`` and ``folders`` are the model."""

    def __init__(self, folder: str, seed: int, counter: str) -> None:
        self.random = random.Random(seed)
        self.folder = f"{folder}/load {seed}"
        os.mkdir(self.folder)
        self.counter = counter
        self.increments = 0
        self.files: dict[str, bytearray] = {}
        self.folders: set[str] = set()
        self.open: dict[int, tuple[str, bool]] = {}  # descriptor -> name, whether O_APPEND
        self.names = 0
        self.log = os.open(f"{self.folder}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.logged = bytearray()
        self.operations: list[Callable[[], None]] = [
            self.create, self.write, self.write, self.append, self.read, self.read_open,
            self.rename, self.unlink, self.mkdir, self.rmdir, self.truncate, self.sync,
            self.close, self.count, self.list, self.log_line, self.replace, self.stat,
        ]  # fmt: skip

    def step(self) -> None:
        self.random.choice(self.operations)()

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def new_name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    def content(self) -> bytes:
        big = self.random.random() < 0.05
        return self.random.randbytes(self.random.randint(1, 1 << 20 if big else 9000))

    def pick(self) -> str | None:
        return self.random.choice(sorted(self.files)) if self.files else None

    def create(self) -> None:
        if len(self.files) > 40:
            return
        name = self.new_name()
        append = self.random.random() < 0.5
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | (os.O_APPEND if append else 0)
        self.open[os.open(self.path(name), flags, 0o600)] = (name, append)
        self.files[name] = bytearray()

    def opened(self) -> tuple[int, str, bool] | None:
        if not self.open:
            return None
        fd = self.random.choice(sorted(self.open))
        return (fd, *self.open[fd])

    def write(self) -> None:
        found = self.opened()
        if found is None:
            return
        fd, name, append = found
        model = self.files[name]
        data = self.content()
        offset = len(model) if append else self.random.randint(0, len(model))
        if append:
            assert os.write(fd, data) == len(data)
        else:
            assert os.pwrite(fd, data, offset) == len(data)
        model[offset : offset + len(data)] = data

    def append(self) -> None:
        name = self.pick()
        if name is None:
            return
        data = self.content()
        with open(self.path(name), "ab", buffering=0) as file:
            assert file.write(data) == len(data)
        self.files[name] += data

    def read(self) -> None:
        name = self.pick()
        if name is not None:
            with open(self.path(name), "rb") as file:
                self.same(name, file.read())

    def read_open(self) -> None:
        found = self.opened()
        if found is not None:
            fd, name, _ = found
            self.same(name, os.pread(fd, len(self.files[name]) + 1, 0))

    def same(self, name: str, content: bytes) -> None:
        model = self.files[name]
        if content != model:
            shorter = min(len(content), len(model))
            at = next((i for i in range(shorter) if content[i] != model[i]), shorter)
            raise AssertionError(f"{name}: {len(content)} bytes, not {len(model)}; first at {at}")

    def rename(self) -> None:
        name = self.pick()
        if name is None:
            return
        new = self.new_name()
        os.rename(self.path(name), self.path(new))
        self.files[new] = self.files.pop(name)
        for fd, (of, append) in list(self.open.items()):
            if of == name:
                self.open[fd] = (new, append)

    def replace(self) -> None:
        """Save by rename, as editors do."""
        name = self.pick()
        if name is None or any(of == name for of, _ in self.open.values()):
            return
        data = self.content()
        with open(self.path("saving"), "wb") as file:
            file.write(data)
        os.rename(self.path("saving"), self.path(name))
        self.files[name] = bytearray(data)

    def unlink(self) -> None:
        name = self.pick()
        if name is None or any(of == name for of, _ in self.open.values()):
            return
        os.unlink(self.path(name))
        del self.files[name]

    def mkdir(self) -> None:
        name = self.new_name()
        os.mkdir(self.path(name))
        self.folders.add(name)

    def rmdir(self) -> None:
        if self.folders:
            name = self.random.choice(sorted(self.folders))
            os.rmdir(self.path(name))
            self.folders.remove(name)

    def truncate(self) -> None:
        found = self.opened()
        if found is None:
            return
        fd, name, _ = found
        model = self.files[name]
        size = self.random.randint(0, len(model) + 100)
        os.ftruncate(fd, size)
        del model[size:]
        model += bytes(size - len(model))

    def sync(self) -> None:
        found = self.opened()
        if found is not None:
            os.fsync(found[0])

    def close(self) -> None:
        found = self.opened()
        if found is not None:
            os.close(found[0])
            del self.open[found[0]]

    def stat(self) -> None:
        name = self.pick()
        if name is not None:
            assert os.stat(self.path(name)).st_size == len(self.files[name])

    def count(self) -> None:
        """Exactly once, and one at a time."""
        fd = os.open(self.counter, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        value = int(os.pread(fd, 20, 0))
        os.pwrite(fd, b"%020d" % (value + 1), 0)
        os.fsync(fd)
        os.close(fd)
        self.increments += 1

    def log_line(self) -> None:
        line = b"%d %d\n" % (len(self.logged), self.increments)
        assert os.write(self.log, line) == len(line)
        self.logged += line

    def list(self) -> None:
        names = set(os.listdir(self.folder))
        assert names == {"log", *self.files, *self.folders}, names

    def finish(self) -> None:
        for fd in list(self.open):
            os.close(fd)
        os.close(self.log)
        self.list()
        for name in sorted(self.files):
            with open(self.path(name), "rb") as file:
                self.same(name, file.read())
        with open(f"{self.folder}/log", "rb") as file:
            assert file.read() == bytes(self.logged)


def main() -> None:
    folder, seed, counter = sys.argv[1:]
    load = Load(folder, int(seed), counter)
    steps = 0
    while not select.select([sys.stdin], [], [], 0)[0]:
        load.step()
        steps += 1
    load.finish()
    print(steps, load.increments)


if __name__ == "__main__":
    main()
