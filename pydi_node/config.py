"""What one node is told to do: a frozen record, and the one table of options behind it.

Called by cli.py; read by runtime/. Each option may be given as a flag, as an environment variable
(``PYDI_`` and the flag's name), in a config file (TOML, the flag's name as key) or not at all, and
the first of these that names it wins. This module must never touch anything but the config file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydi_node import portable
from pydi_node.discovery.group import (
    GROUP_DEFAULT,
    GROUP_V4,
    PORT_DEFAULT,
    Group,
    parse_group,
    parse_interface,
)
from pydi_node.errors import EXIT_USAGE, UserError
from pydi_node.ids import NODE_NUMBER_MAX, NodeNumber

LISTEN_PORT_DEFAULT = 7420
LOG_LEVELS = ("debug", "info", "warning", "error")
CONFIG_FILE_NAME = "config.toml"  # looked for in DATA_DIR when no other file is named


class Address(NamedTuple):
    """Where a TCP socket listens. port 0: any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


# Every address of the machine, IPv4 and IPv6 (server.py falls back where there is no IPv6).
LISTEN_DEFAULT = Address("::", LISTEN_PORT_DEFAULT)


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Everything a node is started with. What the whole cluster shares is a setting in the tree."""

    # Folder of everything this node keeps; created with mode 0700 if it does not exist.
    data_dir: Path
    # Number to take at the first start; None: the first node is 1, a joining one is given one.
    # Later starts must name the same number or none.
    number: NodeNumber | None = None
    # TCP address to serve on. A port that is taken makes the node look at the next ones.
    # All addresses by default, so that the cluster's other machines find it; whoever connects must
    # prove with a certificate that it belongs here before anything else is read.
    listen: Address = LISTEN_DEFAULT
    # Addresses of other nodes to look for; more are learned from the cluster itself.
    peers: tuple[Address, ...] = ()
    # Token of the cluster to join at the first start (clashes with token_file); it is kept in
    # DATA_DIR/token from then on. None with no token_file: join nobody, make a new cluster.
    join_token: str | None = None
    # File that holds the token, for those who do not want it in a process list.
    token_file: Path | None = None
    # One of LOG_LEVELS.
    log_level: str = "info"
    # Vote and keep the log and the tree, but never content. Kept in DATA_DIR from the first start
    # with it on; a node that holds content refuses it.
    witness: bool = False
    # Multicast group of discovery; all nodes and mounts of a cluster must use the same one.
    group: Group = GROUP_DEFAULT
    # Addresses of the network interfaces for discovery; none: those that reach ``listen``.
    interfaces: tuple[str, ...] = ()

    def validate(self) -> None:
        """UserError naming the option, or the two that clash."""
        if self.join_token is not None and self.token_file is not None:
            raise _usage("--join and --token-file both name a token: give one of them")
        if self.log_level not in LOG_LEVELS:
            raise _usage(f"--log-level {self.log_level!r} is none of {', '.join(LOG_LEVELS)}")
        if self.number is not None and not 1 <= self.number <= NODE_NUMBER_MAX:
            raise _usage(f"--number {self.number} is not within 1 .. {NODE_NUMBER_MAX}")
        for peer in self.peers:
            if peer.port == 0:
                raise _usage(f"--peer {peer} names no port")


def parse_address(text: str, port_default: int | None = None) -> Address:
    """HOST:PORT or [IPV6]:PORT; HOST alone where there is a default port. ValueError otherwise."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or (rest and colon != ":"):
            raise ValueError("an IPv6 address is written [ADDRESS]:PORT")
    else:
        host, colon, port = text.rpartition(":")
        if not colon:
            host, port = text, ""
        if ":" in host:
            raise ValueError("an IPv6 address is written [ADDRESS]:PORT")
    if not host:
        raise ValueError("the host is missing")
    if not port and not colon and port_default is not None:
        return Address(host, port_default)
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("expected HOST:PORT")
    return Address(host, int(port))


class Option(NamedTuple):
    """One way to set a field of NodeConfig, spelled alike on all three ways in."""

    name: str  # as the flag, without the dashes
    field: str  # of NodeConfig
    parse: Callable[[str], Any]
    metavar: str
    help: str
    repeatable: bool = False
    is_switch: bool = False  # as a flag it takes no value

    @property
    def variable(self) -> str:
        return "PYDI_" + self.name.upper().replace("-", "_")


def _listen(text: str) -> Address:
    return parse_address(text, LISTEN_PORT_DEFAULT)


def _number(text: str) -> NodeNumber:
    if not text.isascii() or not text.isdigit():
        raise ValueError("expected a whole number")
    return NodeNumber(int(text))


def _switch(text: str) -> bool:
    if text.lower() not in _SWITCH_TEXTS:
        raise ValueError("expected yes or no")
    return _SWITCH_TEXTS[text.lower()]


_SWITCH_TEXTS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}

OPTIONS: tuple[Option, ...] = (
    Option("data-dir", "data_dir", Path, "DIR", "folder of everything this node keeps"),
    Option("number", "number", _number, "N", "node number to take at the first start"),
    Option(
        "listen", "listen", _listen, "HOST:PORT",
        f"TCP address to serve on (all, port {LISTEN_PORT_DEFAULT}; port 0: any free one)",
    ),
    Option("group", "group", parse_group, "ADDR:PORT",
           f"multicast group to be found by ({GROUP_V4}:{PORT_DEFAULT})"),
    Option("interface", "interfaces", parse_interface, "ADDR",
           "address of an interface to be found through (repeatable; those that serve)", True),
    Option("peer", "peers", _listen, "HOST:PORT", "another node's address (repeatable)", True),
    Option("join", "join_token", str, "TOKEN", "join the cluster that this token belongs to"),
    Option("token-file", "token_file", Path, "FILE", "like --join, the token read from a file"),
    Option("witness", "witness", _switch, "", "vote and keep the tree, but no content",
           is_switch=True),
    Option("log-level", "log_level", str, "LEVEL", f"{' '.join(LOG_LEVELS)} (info)"),
)  # fmt: skip


def load_config(
    flags: Mapping[str, Sequence[str]],
    environ: Mapping[str, str],
    uid: int,
    config_file: Path | None = None,
) -> NodeConfig:
    """The validated configuration out of flags, environment, config file and defaults.

    flags        option name to the texts given, in order; an option without flag is absent.
    environ      a repeatable option's variable holds its values separated by commas.
    config_file  None: DATA_DIR/config.toml if it exists.
    UserError (exit code 2) says in one sentence what can't be used and where it was written.
    """
    given: dict[str, tuple[str, list[str]]] = {}
    for option in OPTIONS:
        if flags.get(option.name):
            given[option.name] = (f"--{option.name}", list(flags[option.name]))
        elif environ.get(option.variable):
            text = environ[option.variable]
            given[option.name] = (
                option.variable,
                [part.strip() for part in text.split(",")] if option.repeatable else [text],
            )
    values: dict[str, Any] = {"data_dir": portable.data_dir(environ, uid)}
    _take(values, given, ("data-dir",))
    in_file = _read_file(config_file, values["data_dir"] / CONFIG_FILE_NAME)
    given = in_file | given
    # A token from a nearer place replaces one from a farther place, whichever option spells it;
    # only two tokens from the same place clash, which validate() reports.
    if {"join", "token-file"} <= given.keys():
        places = {name: _rank(given[name][0]) for name in ("join", "token-file")}
        if places["join"] != places["token-file"]:
            del given[max(places, key=lambda name: places[name])]
    _take(values, given, tuple(option.name for option in OPTIONS))
    config = NodeConfig(**values)
    config.validate()
    return config


def _rank(place: str) -> int:
    return 0 if place.startswith("--") else 1 if place.startswith("PYDI_") else 2


def _take(
    values: dict[str, Any], given: Mapping[str, tuple[str, list[str]]], names: Sequence[str]
) -> None:
    for option in OPTIONS:
        if option.name not in names or option.name not in given:
            continue
        place, texts = given[option.name]
        try:
            parsed = [option.parse(text) for text in texts]
        except ValueError as exc:
            raise _usage(f"{place} {' '.join(texts)}: {exc}") from exc
        values[option.field] = tuple(parsed) if option.repeatable else parsed[-1]


def _read_file(named: Path | None, default: Path) -> dict[str, tuple[str, list[str]]]:
    path = named or default
    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError as exc:
        if named is None:
            return {}
        raise _usage(f"--config {path}: no such file") from exc
    except tomllib.TOMLDecodeError as exc:
        raise _usage(f"{path}: not a TOML file: {exc}") from exc
    except OSError as exc:
        raise _usage(f"{path}: {exc.strerror}") from exc
    known = {option.name: option for option in OPTIONS}
    given = {}
    for key, value in table.items():
        if key not in known:
            raise _usage(f"{path}: unknown option {key!r}")
        items = value if isinstance(value, list) and known[key].repeatable else [value]
        is_bool = any(isinstance(item, bool) for item in items)
        if is_bool != known[key].is_switch or not all(isinstance(i, (str, int)) for i in items):
            what = "true or false" if known[key].is_switch else "a text or a number"
            raise _usage(f"{path}: option {key!r} takes {what}")
        given[key] = (f"{path}: {key}", [str(item) for item in items])
    return given


def _usage(sentence: str) -> UserError:
    return UserError(sentence, EXIT_USAGE)
