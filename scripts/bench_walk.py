"""``scripts/bench --walk N``: a tree too large for any cache, made without a mount and then walked.

What it is for: the daemons' memory must not follow the size of the tree that passes through them,
and a huge directory must list at the same pace as a small one.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

from pydi_fs.client import Client, node_on_this_machine
from pydi_node.commands import Caller, Create, Mkdir
from pydi_node.ids import ROOT_INO

DIRECTORY_ENTRIES = 200_000
CREATES_AT_A_TIME = 128  # share the log's writes; a node takes as many of one client
CALLER = Caller(os.geteuid(), os.getegid())


async def make(data_dir: Path, count: int) -> None:
    """``count`` empty files in folders ``walk0`` and up of DIRECTORY_ENTRIES each."""
    client = Client([node_on_this_machine(data_dir)])
    await client.connect()
    for number, first in enumerate(range(0, count, DIRECTORY_ENTRIES)):
        made = await client.execute(Mkdir(CALLER, ROOT_INO, b"walk%d" % number, 0o755))
        names = iter(range(min(DIRECTORY_ENTRIES, count - first)))

        async def create_some(names: Iterator[int], parent: int) -> None:
            for name in names:
                await client.execute(Create(CALLER, parent, b"file-%07d" % name, 0o644, True))

        await asyncio.gather(*(create_some(names, made.ino) for _ in range(CREATES_AT_A_TIME)))
    await client.close()


def listing(mount: Path) -> int:
    """Entries of all the folders, by name alone."""
    return sum(len(os.listdir(folder)) for folder in sorted(mount.glob("walk*")))


def walk(mount: Path) -> int:
    """As ``listing``, with the attributes of each entry."""
    found = 0
    for folder in sorted(mount.glob("walk*")):
        with os.scandir(folder) as entries:
            for entry in entries:
                entry.stat(follow_symlinks=False)
                found += 1
    return found
