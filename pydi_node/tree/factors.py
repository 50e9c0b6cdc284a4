"""How many copies content should have: what directories ask for, brought to the blobs below them.

A directory asks by an extended attribute (records.FACTOR_XATTR). The blob row keeps the number, so
that repair can count blobs by holders and number and never walks the tree. New blobs get it at
their commit; what is there already when an attribute or a name changes is looked at in the
background, some entries with each SpreadFactors: the list of inodes still to be looked at is in the
tree, so it survives any change of leaders.

A blob in several files gets the largest of their numbers. It falls only while one version of one
file names the blob, for nobody knows what the others ask for.
"""

from __future__ import annotations

import re
import stat
from collections import Counter
from typing import Final

from pydi_node.commands import SpreadFactors
from pydi_node.records import Result
from pydi_node.tree.settings import SETTINGS
from pydi_node.tree.store import Inode, Store

_FORM: Final = re.compile(rb"[1-9]")


def parse_factor(value: bytes) -> int | None:
    """The number of copies in an attribute's value; None when it is not one that can be."""
    if not _FORM.fullmatch(value) or int(value) > SETTINGS["replicas"].high:
        return None
    return int(value)


def spread_factors(store: Store, command: SpreadFactors) -> Result:
    looked = 0
    while looked < command.limit and (due := store.next_refactor()) is not None:
        ino, after = due
        inode = store.inode(ino)
        assert inode is not None, ino  # whoever removes an inode takes it off the list
        looked += 1
        if not stat.S_ISDIR(inode.mode):
            _settle(store, inode)
            store.continue_refactor(ino, None)
            continue
        room = command.limit - looked + 1
        children = store.children(ino, after, room)
        for _, child_ino in children:
            child = store.inode(child_ino)
            assert child is not None, child_ino
            if stat.S_ISREG(child.mode):
                _settle(store, child)
            elif stat.S_ISDIR(child.mode) and child_ino not in store.factors:
                store.refactor(child_ino)
        looked += len(children)
        store.continue_refactor(ino, children[-1][0] if len(children) == room else None)
    return Result(0, (looked, store.next_refactor() is not None))


def _settle(store: Store, inode: Inode) -> None:
    """The blobs of a file have the number that is asked for where it is. What was removed keeps the
    number that it had: it may come back."""
    if inode.nlink == 0:
        return
    factor = store.factor_of(inode)
    for blob_id, count in Counter(s.extent.blob for s in store.extents(inode.ino)).items():
        blob = store.blob(blob_id)
        assert blob is not None, blob_id
        if blob.refs == count:
            store.set_blob_factor(blob, factor)
        else:
            store.share_blob(blob, factor)
