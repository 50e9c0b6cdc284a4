"""What one `pydi-mount` is told to do: a frozen record, and the one table of options behind it.

Called by mount_cli.py, which reads the config file and hands its table in. Pure: no file, no
environment but the mapping given, no clock. Each option may be given as a flag, as an environment
variable (``PYDI_`` and the flag's name), in a TOML file (the flag's name as key) or not at all, and
the first of these that names it wins, as for `pydi-node`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from pydi_fs.mount_options import MountOptions
from pydi_node import portable
from pydi_node.discovery.group import GROUP_DEFAULT, Group, parse_group, parse_interface
from pydi_node.errors import EXIT_USAGE, UserError

DRIVERS = ("auto", "kernel", "fusepy")
CONFIG_FILE_NAME = "mount.toml"  # looked for in the data directory when no other file is named

CACHE_SIZE_DEFAULT = 2 << 30  # disk: a few working sets; not so much that a small disk notices
CACHE_SIZE_MIN = 1 << 20
# Longer than two leader elections of about 2 s; shorter than a person's patience.
DEADLINE_DEFAULT_S = 10.0
DEADLINE_MIN_S = 1.0
DEADLINE_MAX_S = 3600.0


@dataclass(frozen=True, slots=True)
class MountConfig:
    """Everything a mount is started with."""

    # Where the tree shall appear, as given; mount_cli makes it absolute.
    mountpoint: str
    # Folder of the node on this machine, found by its unix socket. Clashes with ``node``.
    data_dir: str
    # HOST:PORT of a node elsewhere. None: with a token the nodes of its cluster are found by
    # multicast, without one it is the node behind ``data_dir``.
    node: str | None = None
    # Token for nodes elsewhere; the unix socket needs none. Clashes with ``token_file``.
    token: str | None = None
    # File that holds the token, for those who do not want it in a process list.
    token_file: str | None = None
    # Multicast group in which nodes are looked for: that of the nodes.
    group: Group = GROUP_DEFAULT
    # Address of the network interface to look through; None: all of them.
    interface: str | None = None
    # One of DRIVERS.
    driver: str = "auto"
    # Folder of staged writes, of content that was read, and of a background mount's log.
    cache_dir: str = ""
    # Bytes of disk, below ``cache_dir``, that content read from other machines may fill.
    cache_size: int = CACHE_SIZE_DEFAULT
    # Seconds after which a file operation that cannot be answered fails.
    deadline_s: float = DEADLINE_DEFAULT_S
    # Stay in the foreground and log to stderr.
    foreground: bool = False
    # Log each request.
    debug: bool = False
    # Mount at once, whether a node can be reached or not; programs wait for one at most
    # ``deadline_s``. For a mount at boot.
    background: bool = False
    # What the binding is asked for.
    options: MountOptions = field(default_factory=MountOptions)
    # Whether ``-o`` said allow_other or noallow_other; if not, mount_cli turns it on if permitted.
    allow_other_given: bool = False

    def validate(self) -> None:
        """UserError (usage) naming the option, or the two that clash."""
        if self.token is not None and self.token_file is not None:
            raise _usage("--token and --token-file both name a token: give one of them")
        self.options.validate()

    @property
    def has_token(self) -> bool:
        return self.token is not None or self.token_file is not None


class Option(NamedTuple):
    """One way to set a field of MountConfig, spelled alike on all three ways in."""

    name: str  # as the flag, without the dashes
    field: str  # of MountConfig
    parse: Callable[[str], Any]
    metavar: str | None  # None: a switch
    help: str
    flag: str = ""  # how it is typed, when that is not --name

    @property
    def variable(self) -> str:
        return "PYDI_" + self.name.upper().replace("-", "_")


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or [IPV6]:PORT. ValueError otherwise."""
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\[\]:]+)):([0-9]{1,5})", text)
    if match is None:
        raise ValueError("expected HOST:PORT, an IPv6 address as [ADDRESS]:PORT")
    port = int(match[3])
    if not 1 <= port <= 65535:
        raise ValueError("a port is 1 .. 65535")
    return match[1] or match[2], port


def parse_size(text: str, least: int = CACHE_SIZE_MIN) -> int:
    """Bytes of ``64M``, ``10GiB``, ``1048576``: powers of 1024. ValueError otherwise."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(?:i?b)?", text.strip().lower())
    if match is None:
        raise ValueError("expected a size such as 512M or 10G")
    size = int(float(match[1]) * (1 << (10 * " kmgt".index(match[2] or " "))))
    if size < least:
        raise ValueError(f"the least is {least >> 20}M")
    return size


def _address(text: str) -> str:
    parse_address(text)
    return text


def _driver(text: str) -> str:
    if text not in DRIVERS:
        raise ValueError(f"expected one of {', '.join(DRIVERS)}")
    return text


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        raise ValueError("expected a number of seconds")
    seconds = float(text)
    if not DEADLINE_MIN_S <= seconds <= DEADLINE_MAX_S:
        raise ValueError(f"expected {DEADLINE_MIN_S:g} to {DEADLINE_MAX_S:g} seconds")
    return seconds


def _switch(text: str) -> bool:
    values = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.lower() not in values:
        raise ValueError("expected yes or no")
    return values[text.lower()]


OPTIONS: tuple[Option, ...] = (
    Option("data-dir", "data_dir", str, "DIR", "folder of the node on this machine"),
    Option("node", "node", _address, "HOST:PORT", "a node on another machine, needs a token"),
    Option("token", "token", str, "TOKEN", "token of the cluster, or a mount token; without"
           " --node its nodes are found by multicast"),
    Option("token-file", "token_file", str, "FILE", "like --token, read from a file"),
    Option("group", "group", parse_group, "ADDR:PORT", "multicast group of the nodes"),
    Option("interface", "interface", parse_interface, "ADDR",
           "address of the interface to find nodes through (all)"),
    Option("driver", "driver", _driver, "DRIVER", f"{' '.join(DRIVERS)} (auto)"),
    Option("cache-dir", "cache_dir", str, "DIR", "folder for staged and fetched content, and log"),
    Option("cache-size", "cache_size", parse_size, "SIZE", "disk for fetched content (2G)"),
    Option(
        "deadline", "deadline_s", _seconds, "SECONDS",
        f"an operation that can't be answered fails after this time ({DEADLINE_DEFAULT_S:g})",
    ),
    Option("read-only", "read_only", _switch, None, "refuse every change"),
    Option("foreground", "foreground", _switch, None, "stay in the foreground, log to stderr"),
    Option(
        "options", "mount_options", str, "OPTIONS",
        "comma-separated, as for mount(8): ro bg allow_other noallow_other noatime fsname=NAME"
        " max_read=BYTES passthrough_after=SECONDS|never delegations=never durability=close|fsync"
        " default_permissions nodefault_permissions debug",
        flag="-o",
    ),
    Option("debug", "debug", _switch, None, "log every request"),
)  # fmt: skip

# What stands in an fstab line for mount(8) itself and means nothing to a file system.
_FSTAB_WORDS = {
    "defaults", "auto", "noauto", "nofail", "_netdev", "rw", "async", "relatime",
    "user", "nouser", "users", "exec",
}  # fmt: skip
# Option of -o -> the change it makes.
_MOUNT_WORDS: dict[str, dict[str, Any]] = {
    "ro": {"read_only": True},
    "allow_other": {"allow_other": True},
    "noallow_other": {"allow_other": False},
    "default_permissions": {"default_permissions": True},
    "nodefault_permissions": {"default_permissions": False},
    "noatime": {"noatime": True},
    "debug": {"debug": True},
    "bg": {"background": True},
    "delegations=never": {"delegations": False},
    "durability=close": {"closes_behind": False},
    "durability=fsync": {"closes_behind": True},
}


def parse_mount_options(text: str) -> dict[str, Any]:
    """Fields of MountOptions that the comma-separated words of ``-o`` set. ValueError otherwise."""
    fields: dict[str, Any] = {}
    for word in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = word.partition("=")
        if word in _MOUNT_WORDS:
            fields.update(_MOUNT_WORDS[word])
        elif name == "fsname" and equals:
            fields["fsname"] = value
        elif name == "max_read" and value.isascii() and value.isdigit():
            fields["max_read"] = int(value)
        elif name == "passthrough_after" and re.fullmatch(r"[0-9]+(\.[0-9]+)?|never", value):
            fields["passthrough_after_s"] = None if value == "never" else float(value)
        elif word not in _FSTAB_WORDS and not name.startswith(("x-", "comment")):
            raise ValueError(f"unknown mount option {word!r}")
    return fields


Given = dict[str, tuple[str, str]]  # option name -> (where it was written, text)


def pick(
    flags: Mapping[str, str], environ: Mapping[str, str], in_file: Mapping[str, str], path: str
) -> Given:
    """Each option's text from the nearest place that names it: flag, environment, file.

    flags, in_file  option name to text; a switch's text is "yes" or "no".
    path            of the file, for messages.
    Two options that exclude each other clash only when they come from the same place; otherwise the
    nearer one wins.
    """
    given: Given = {}
    ranks: dict[str, int] = {}
    for option in OPTIONS:
        places = (
            (f"{option.flag or '--' + option.name}", flags.get(option.name)),
            (option.variable, environ.get(option.variable) or None),
            (f"{path}: {option.name}", in_file.get(option.name)),
        )
        for rank, (place, text) in enumerate(places):
            if text is not None:
                given[option.name] = (place, text)
                ranks[option.name] = rank
                break
    for pair in (("data-dir", "node"), ("token", "token-file")):
        if all(name in given for name in pair):
            if ranks[pair[0]] == ranks[pair[1]]:
                first, second = (given[name][0] for name in pair)
                raise _usage(f"{first} and {second} exclude each other: give one of them")
            del given[max(pair, key=lambda name: ranks[name])]
    # A node on this machine needs no token: of the two ways to a cluster the nearer one is meant.
    if "data-dir" in given and "node" not in given:
        for name in ("token", "token-file"):
            if name not in given:
                continue
            if ranks[name] < ranks["data-dir"]:
                del given["data-dir"]
                break
            if ranks[name] == 0:
                raise _usage(
                    f"{given[name][0]} is for nodes elsewhere, and the node on this machine that"
                    f" {given['data-dir'][0]} names needs none: give one of them"
                )
            del given[name]
    return given


def build(mountpoint: str, given: Given, environ: Mapping[str, str], uid: int) -> MountConfig:
    """The validated configuration; UserError (usage) says what can't be used and where it stood."""
    values: dict[str, Any] = {}
    for option in OPTIONS:
        if option.name in given:
            place, text = given[option.name]
            try:
                values[option.field] = option.parse(text)
                if option.field == "mount_options":
                    values[option.field] = parse_mount_options(text)
            except ValueError as exc:
                raise _usage(f"{place} {text}: {exc}") from exc
    fields = values.pop("mount_options", {})
    if values.pop("read_only", False):
        fields["read_only"] = True
    debug = bool(values.pop("debug", False) or fields.get("debug", False))
    background = bool(fields.pop("background", False))
    values.setdefault("data_dir", str(portable.data_dir(environ, uid)))
    values.setdefault("cache_dir", str(portable.cache_dir(environ, uid)))
    config = MountConfig(
        mountpoint=mountpoint,
        debug=debug,
        background=background,
        options=replace(MountOptions(), **{**fields, "debug": debug}),
        allow_other_given="allow_other" in fields,
        **values,
    )
    config.validate()
    return config


def check_file_table(table: Mapping[str, Any], path: str) -> dict[str, str]:
    """Option name to text out of a parsed TOML file; UserError (usage) for anything unknown."""
    known = {option.name: option for option in OPTIONS}
    texts = {}
    for key, value in table.items():
        if key not in known:
            raise _usage(f"{path}: unknown option {key!r}")
        if isinstance(value, bool):
            if known[key].metavar is not None:
                raise _usage(f"{path}: option {key!r} takes a text or a number")
            texts[key] = "yes" if value else "no"
        elif isinstance(value, (str, int, float)):
            texts[key] = str(value)
        else:
            raise _usage(f"{path}: option {key!r} takes a text or a number")
    return texts


def _usage(sentence: str) -> UserError:
    return UserError(sentence, EXIT_USAGE)
