"""``mount.pydi`` and ``mount.fuse.pydi``: what mount(8) and systemd run for a line in /etc/fstab.

    pydi#/etc/pydi/token  /mnt/pydi  fuse.pydi  _netdev,nofail  0 0

Translates their way of saying it into a command line of ``pydi-mount``, and runs that. The source
says how to get to the cluster; whatever else pydi-mount can be told is an option by its name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from pydi_fs import mount_config
from pydi_node.errors import EXIT_OK, EXIT_USAGE, UserError

PROGRAM = "mount.pydi"
SOURCE_PREFIX = "pydi#"
# Who says one of these does not want the boot to depend on the cluster: mount, and wait then.
_MAY_WAIT = ("_netdev", "nofail", "bg")
_FLAGS_TAKING_A_VALUE = ("-t", "-N", "-o")
_VALUES = {o.name for o in mount_config.OPTIONS if o.metavar is not None and not o.flag}


def pydi_mount_arguments(
    arguments: Sequence[str], is_directory: Callable[[str], bool]
) -> list[str] | None:
    """The arguments for pydi-mount; None when nothing is to be done (``mount --fake``).

    arguments  SOURCE MOUNTPOINT [-fnsv] [-t TYPE] [-o OPTIONS], as mount(8) gives them.
    UserError  what can't be meant.
    """
    places: list[str] = []
    words: list[str] = []
    fake = False
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word in _FLAGS_TAKING_A_VALUE:
            if not rest:
                raise UserError(f"{word} takes a value", EXIT_USAGE)
            value = rest.pop(0)
            if word == "-o":
                words += filter(None, value.split(","))
        elif word.startswith("-"):
            fake |= "f" in word[1:]
        else:
            places.append(word)
    if len(places) != 2:
        raise UserError("expected SOURCE MOUNTPOINT [-o OPTIONS]", EXIT_USAGE)
    if fake:
        return None
    source, mountpoint = places
    command = [mountpoint, *_of_source(source, is_directory)]
    kept = []
    for word in words:
        name, equals, value = word.partition("=")
        # Underscores are how mount options are spelled elsewhere.
        option = name.replace("_", "-")
        if equals and option in _VALUES:
            command += [f"--{option}", value]
        elif word == "remount":
            raise UserError("remount: unmount it and mount it again", EXIT_USAGE)
        else:
            kept.append(word)
    if any(word in _MAY_WAIT for word in kept) and "bg" not in kept:
        kept.append("bg")
    return [*command, *(["-o", ",".join(kept)] if kept else [])]


def _of_source(source: str, is_directory: Callable[[str], bool]) -> list[str]:
    """``pydi`` and ``pydi#``: the node of this machine. Behind the ``#`` a token's file, a node's
    data directory, or the HOST:PORT of a node."""
    where = source.removeprefix(SOURCE_PREFIX) if source.startswith(SOURCE_PREFIX) else ""
    if where.startswith("/"):
        return ["--data-dir" if is_directory(where) else "--token-file", where]
    return ["--node", where] if where else []


def main(arguments: Sequence[str] | None = None) -> int:
    """Mounts; the exit code of pydi-mount."""
    try:
        command = pydi_mount_arguments(
            sys.argv[1:] if arguments is None else arguments, os.path.isdir
        )
    except UserError as exc:
        print(f"{PROGRAM}: {exc}", file=sys.stderr)
        return exc.exit_code
    if command is None:
        return EXIT_OK
    from pydi_fs import mount_cli

    return mount_cli.main(command)


if __name__ == "__main__":
    sys.exit(main())
