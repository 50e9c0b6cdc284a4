"""What a session that is bound to a directory may ask: every request and command there is."""

from __future__ import annotations

import dataclasses
import errno
from typing import Any

import pytest

from pydi_node.commands import (
    CLIENT_COMMANDS,
    COMMAND_CODES,
    ROOT_CALLER,
    Batch,
    Command,
    Commit,
    Delegate,
    Link,
    Mkdir,
    PutFile,
    Rename,
    ReserveInodes,
    SetAttr,
    Symlink,
    Undelegate,
    Unlink,
)
from pydi_node.errors import BlobError, FileError
from pydi_node.ids import ROOT_INO, ClientId, Ino, Serial, TimeNs
from pydi_node.records import EVERY_NAME, Attr, DirEntry, Result, Touched
from pydi_node.runtime.bounds import _INODES, Bounds
from pydi_node.wire import messages as m
from pydi_node.wire.messages import Role
from tests.unit.tree.driver import ROOT, Driver, file_error
from tests.unit.wire.samples import ATTR, COMMANDS, INFO, SAMPLES

# Requests of a mount that name nothing in the tree, or only a blob that the session writes itself.
NAME_NOTHING = {
    "Statfs", "IndexAt", "BlobWrite", "BlobGrown", "BlobTruncate", "BlobSeal", "BlobAbort",
    "Subscribe", "Nodes", "Release", "Lease",
}  # fmt: skip
# Commands that reach nothing but what is the client's own.
OF_THE_CLIENT = (ReserveInodes, Undelegate)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def bounds_of(driver: Driver) -> Bounds:
    """Of a directory with nothing in it, beside others."""
    driver.mkdir(b"other")
    return Bounds(lambda: driver.tree, driver.mkdir(b"own"), lambda ino: False)


@pytest.mark.parametrize(
    "request_",
    [s[0] for s in SAMPLES if Role.MOUNT in m.REQUEST_OF_CLASS[type(s[0])].roles],
    ids=lambda request: type(request).__name__,
)
def test_every_request_of_a_mount_is_decided(driver: Driver, request_: Any) -> None:
    """The samples' inodes and blobs lie outside: each is refused that names one; one that is added
    to the protocol and forgotten here is refused too, or names nothing."""
    bounds = bounds_of(driver)
    if type(request_).__name__ in NAME_NOTHING:
        bounds.inward(request_)
        return
    changes: dict[str, Any] = {"at": None} if hasattr(request_, "at") else {}
    changes |= {name: Ino(12345) for name in _INODES if hasattr(request_, name)}
    if isinstance(request_, m.Execute):
        changes["command"] = dataclasses.replace(request_.command, parent=Ino(12345))
    with pytest.raises((FileError, BlobError)) as refused:
        bounds.inward(dataclasses.replace(request_, **changes))
    if isinstance(refused.value, FileError):
        assert refused.value.errno in (errno.ESTALE, errno.EPERM)


def many(*commands: Command) -> Batch:
    return Batch(commands, (TimeNs(3),) * len(commands))


def placed(command: Any, ino: Ino) -> Any:
    """It names this inode for each one that it names."""
    if isinstance(command, Batch):
        parts = tuple(placed(part, ino) for part in command.commands)
        return dataclasses.replace(command, commands=parts)
    places = {
        field.name: ino
        for field in dataclasses.fields(command)
        if isinstance(getattr(command, field.name), int) and field.name in _INODES
    }
    return dataclasses.replace(command, **places)


@pytest.mark.parametrize(
    "command",
    [
        command
        for cls, command in COMMANDS.items()
        if COMMAND_CODES[cls] in CLIENT_COMMANDS and cls not in OF_THE_CLIENT
    ],
    ids=lambda command: type(command).__name__,
)
def test_every_command_of_a_client_is_decided(driver: Driver, command: Any) -> None:
    """Likewise, for what changes the tree: none names an inode outside."""
    bounds = bounds_of(driver)
    command = placed(command, Ino(12345))
    with pytest.raises(FileError) as refused:
        bounds.inward(m.Execute(ClientId(1), Serial(1), command))
    assert refused.value.errno == errno.ESTALE


@pytest.mark.parametrize(
    "command",
    [c for c in COMMANDS.values() if COMMAND_CODES[type(c)] in CLIENT_COMMANDS],
    ids=lambda command: type(command).__name__,
)
def test_every_command_of_a_client_is_for_its_own_directory(driver: Driver, command: Any) -> None:
    """None has a field of which nobody has said what it means for such a token."""
    bounds = bounds_of(driver)
    own = driver.tree.resolve(b"/own").ino
    nothing: dict[str, Any] = {"extents": (), "blobs": ()} if hasattr(command, "blobs") else {}
    within = dataclasses.replace(placed(command, own), **nothing)
    assert bounds.inward(m.Execute(ClientId(1), Serial(1), within)).command == within


def test_a_delegation_stays_within_the_directory(driver: Driver) -> None:
    """The root stands for it; numbers that a client reserved are no inodes that could lie outside;
    what is given back is the client's own, wherever it is by now."""
    bounds = bounds_of(driver)
    own = driver.tree.resolve(b"/own").ino

    def inward(command: Command) -> Command:
        request = bounds.inward(m.Execute(ClientId(1), Serial(1), command))
        assert isinstance(request, m.Execute)
        return request.command

    assert inward(Delegate(ROOT_INO)) == Delegate(own)
    assert inward(Undelegate((ROOT_INO, Ino(99)))) == Undelegate((own, Ino(99)))
    assert inward(ReserveInodes()) == ReserveInodes()
    put = PutFile(ROOT_CALLER, ROOT_INO, b"n", 0o644, 0, (), (), ino=Ino(99))
    assert inward(put) == dataclasses.replace(put, parent=own)
    every = Touched((own,), ((own, EVERY_NAME),))
    assert bounds.pushed(every) == Touched((ROOT_INO,), ((ROOT_INO, EVERY_NAME),))


def test_every_command_of_a_batch_stays_within_the_directory(driver: Driver) -> None:
    """One that lies outside is enough to refuse all; what the batch makes is no inode yet."""
    bounds = bounds_of(driver)
    own = driver.tree.resolve(b"/own").ino

    def inward(*commands: Command) -> Command:
        request = bounds.inward(m.Execute(ClientId(1), Serial(1), many(*commands)))
        assert isinstance(request, m.Execute)
        return request.command

    made = Mkdir(ROOT_CALLER, ROOT_INO, b"d", 0o755, ino=Ino(99))
    within = Unlink(ROOT_CALLER, Ino(99), b"f")
    assert inward(made, within) == many(dataclasses.replace(made, parent=own), within)
    link = Symlink(ROOT_CALLER, Ino(99), b"l", b"to", Ino(98))
    shaped = dataclasses.replace(COMMANDS[SetAttr], ino=Ino(98))  # type: ignore[arg-type]
    assert inward(made, link, shaped) == many(dataclasses.replace(made, parent=own), link, shaped)
    for commands in ((within,), (within, made), (made, Unlink(ROOT_CALLER, Ino(12345), b"f"))):
        with file_error(errno.ESTALE):
            inward(*commands)
    with pytest.raises(BlobError):
        inward(dataclasses.replace(COMMANDS[PutFile], parent=ROOT_INO, ino=Ino(98)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Commit, PutFile])
def test_content_of_others_is_not_to_be_named(driver: Driver, kind: type[Any]) -> None:
    """In its own directory too: a blob that the session was neither shown nor has written."""
    bounds = bounds_of(driver)
    own = driver.tree.resolve(b"/own").ino
    place = {"ino": driver.create(b"f", own)} if kind is Commit else {"parent": own}
    for blobs in ((INFO,), ()):
        command = dataclasses.replace(COMMANDS[kind], **place, blobs=blobs)  # type: ignore[arg-type]
        with pytest.raises(BlobError):
            bounds.inward(m.Execute(ClientId(1), Serial(1), command))


def test_an_open_is_told_after_the_name_went(driver: Driver) -> None:
    """A mount tells of an open a little later than it happens. What was removed within the
    directory may be opened then, and nothing that was removed elsewhere."""
    bounds = bounds_of(driver)
    for folder, is_allowed in ((b"own", True), (b"other", False)):
        parent = driver.tree.resolve(b"/" + folder).ino
        ino = driver.create(b"f", parent)
        driver.ok(Link(ROOT, ino, ROOT_INO, b"outside"))
        driver.ok(Unlink(ROOT, ROOT_INO, b"outside"))
        driver.ok(Unlink(ROOT, parent, b"f"))
        assert driver.tree.getattr(ino).nlink == 0
        if is_allowed:
            assert bounds.inward(m.Open(ino)) == m.Open(ino)
        else:
            with file_error(errno.ESTALE):
                bounds.inward(m.Open(ino))
        with file_error(errno.ESTALE):
            bounds.inward(m.GetAttr(ino, None))  # nothing else of it
    moved = driver.create(b"moved", driver.tree.resolve(b"/own").ino)
    driver.ok(Rename(ROOT, driver.tree.resolve(b"/own").ino, b"moved", ROOT_INO, b"moved", 0))
    with file_error(errno.ESTALE):
        bounds.inward(m.Open(moved))


def test_the_root_is_the_directory(driver: Driver) -> None:
    """In both directions, and nested as deep as answers are."""
    bounds = bounds_of(driver)
    own = driver.tree.resolve(b"/own").ino
    asked = bounds.inward(m.Lookup(ROOT_INO, b"x"))
    assert isinstance(asked, m.Lookup)
    assert asked.parent == own
    attr = ATTR._replace(ino=own)
    other = ATTR._replace(ino=Ino(99))
    assert bounds.outward((attr, True))[0].ino == ROOT_INO
    assert bounds.outward([DirEntry(1, b"x", attr)])[0].attr.ino == ROOT_INO
    touched = Touched((own, Ino(99)), ((own, b"x"), (Ino(99), b"y")))
    result = bounds.outward(Result(0, (attr, other), touched, (attr, other)))
    assert [a.ino for a in result.directories] == [ROOT_INO, Ino(99)]
    assert [a.ino for a in result.value if isinstance(a, Attr)] == [ROOT_INO, Ino(99)]
    assert result.touched == Touched((ROOT_INO, Ino(99)), ((ROOT_INO, b"x"), (Ino(99), b"y")))


def test_what_crosses_the_border_makes_all_stale(driver: Driver) -> None:
    """A move in or out: what changes outside is not told, so nothing may be remembered. Changes on
    one side are told with what is inside, and nothing else."""
    bounds = bounds_of(driver)
    own, other = (driver.tree.resolve(path).ino for path in (b"/own", b"/other"))
    assert bounds.pushed(Touched((Ino(9),), ((own, b"d"), (other, b"d")))) is None
    assert bounds.pushed(Touched((own,), ((own, b"d"),))) == Touched(
        (ROOT_INO,), ((ROOT_INO, b"d"),)
    )
    assert bounds.pushed(Touched((Ino(9),), ((other, b"d"),))) == Touched((Ino(9),), ())
