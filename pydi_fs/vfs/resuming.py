"""Open files of a worker that died, made again in the one that follows it. Called by `vfs.Vfs`."""

from __future__ import annotations

import os
import stat

from pydi_fs.vfs.journal import State, needed_sources
from pydi_fs.vfs.journalling import Journal
from pydi_fs.vfs.open_file import OpenFile
from pydi_fs.vfs.staging import Stage, StagingArea
from pydi_node.ids import Ino, LogIndex, TimeNs
from pydi_node.records import Attr


def restore_content(
    file: OpenFile, state: State, stage_files: dict[int, int], area: StagingArea
) -> None:
    """The unpublished content of a file that was just made, if there was any.

    stage_files  descriptors of stages; those that are used here are taken out.
    """
    # What the cluster has of it is looked at before the first answer.
    file.changed_elsewhere()
    image = state.files.get(file.ino)
    if image is None:
        return
    stages: dict[int, Stage] = {}
    # The journal also knows others, which their worker may have given back.
    for source in sorted(needed_sources(image)):
        stage = state.stages[source]
        fd = stage_files.pop(source) if stage.data is None else -1
        stages[source] = area.restored(source, file.ino, stage.size, stage.data, fd)
    file.restore(image, stages)


def drop_unused(stage_files: dict[int, int], journal: Journal) -> None:
    """Of these nothing is needed any more."""
    for source, fd in stage_files.items():
        os.close(fd)
        journal.stage_closed(source)


def unknown(ino: Ino) -> Attr:
    """A regular file of which nobody asks anything before it has been looked at."""
    zero = TimeNs(0)
    return Attr(
        ino, stat.S_IFREG, 1, 0, 0, 0, 0, 0, zero, zero, zero, zero, LogIndex(0), LogIndex(0)
    )
