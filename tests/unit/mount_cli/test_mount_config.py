"""Options of pydi-mount: where each comes from, what is refused, and in which words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pydi_fs import mount_config
from pydi_fs.mount_config import MountConfig, parse_address, parse_mount_options, parse_size
from pydi_fs.mount_options import MountOptions
from pydi_node.errors import EXIT_USAGE, UserError


def configure(
    flags: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
    in_file: Mapping[str, str] | None = None,
    uid: int = 0,
) -> MountConfig:
    environ = environ or {}
    given_ = mount_config.pick(flags or {}, environ, in_file or {}, "mount.toml")
    return mount_config.build("/mnt", given_, environ, uid)


def refusal(**arguments: Mapping[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        configure(**arguments)
    assert caught.value.exit_code == EXIT_USAGE
    return str(caught.value)


def test_everything_has_a_default() -> None:
    """No option at all is a valid configuration, for root and for others."""
    root = configure()
    assert (root.data_dir, root.cache_dir) == ("/var/lib/pydi", "/var/cache/pydi")
    assert root.driver == "auto"
    assert root.options == MountOptions()
    user = configure(environ={"HOME": "/home/u"}, uid=1000)
    assert user.data_dir == "/home/u/.local/share/pydi"
    assert user.cache_dir == "/home/u/.cache/pydi"
    xdg = configure(environ={"XDG_DATA_HOME": "/d", "XDG_CACHE_HOME": "/c"}, uid=1000)
    assert (xdg.data_dir, xdg.cache_dir) == ("/d/pydi", "/c/pydi")


# For each option: two texts, and the value of the first.
EXAMPLES: dict[str, tuple[str, str, object]] = {
    "data-dir": ("/a", "/b", "/a"),
    "node": ("h:1", "h:2", "h:1"),
    "token": ("t", "u", "t"),
    "token-file": ("/t", "/u", "/t"),
    "group": ("239.1.2.3:4", "[ff12::5]:6", ["239.1.2.3", "", 4]),
    "interface": ("10.0.0.1", "fd00::1", "10.0.0.1"),
    "driver": ("kernel", "fusepy", "kernel"),
    "cache-dir": ("/a", "/b", "/a"),
    "cache-size": ("2M", "3M", 2 << 20),
    "deadline": ("5", "7", 5.0),
    "read-only": ("yes", "no", True),
    "foreground": ("yes", "no", True),
    "options": ("noatime", "ro", None),
    "debug": ("yes", "no", True),
}


def test_every_option_has_an_example() -> None:
    """The table below covers the table of options."""
    assert EXAMPLES.keys() == {option.name for option in mount_config.OPTIONS}


@pytest.mark.parametrize("name", EXAMPLES)
def test_flag_beats_environment_beats_file(name: str) -> None:
    """Each option is taken from the nearest place that names it."""
    option = next(option for option in mount_config.OPTIONS if option.name == name)
    near, far, value = EXAMPLES[name]
    base = {"node": "h:1"} if name.startswith("token") else {}

    def field(config: MountConfig) -> object:
        if name == "options":
            return None if config.options == MountOptions(noatime=True) else config.options
        if name == "read-only":
            return config.options.read_only
        found = dataclasses.asdict(config)[option.field]
        return list(found) if isinstance(found, tuple) else found

    assert field(configure(flags={**base, name: near})) == value
    assert field(configure(flags=base, environ={option.variable: near})) == value
    assert field(configure(flags=base, in_file={name: near})) == value
    assert field(configure({**base, name: near}, {option.variable: far}, {name: far})) == value
    assert field(configure(base, {option.variable: near}, {name: far})) == value


def test_data_dir_and_node_exclude_each_other_only_in_one_place() -> None:
    """Two at once are refused; a nearer place replaces what a farther one says."""
    message = refusal(flags={"data-dir": "/d", "node": "h:1"})
    assert "--data-dir" in message
    assert "--node" in message
    assert configure({"node": "h:1", "token": "t"}, {"PYDI_DATA_DIR": "/d"}).node == "h:1"
    config = configure({"data-dir": "/d"}, {"PYDI_NODE": "h:1"})
    assert (config.data_dir, config.node) == ("/d", None)


def test_tokens() -> None:
    """One token, and only for nodes elsewhere; a far one is not handed to the local node."""
    assert "--token-file" in refusal(flags={"node": "h:1", "token": "t", "token-file": "/t"})
    message = refusal(flags={"data-dir": "/d", "token": "t"})
    assert "--data-dir" in message
    assert "--token" in message
    found = configure({"token": "t"}, {"PYDI_DATA_DIR": "/d"})
    assert (found.has_token, found.node, found.data_dir) == (True, None, "/var/lib/pydi")
    assert not configure(environ={"PYDI_DATA_DIR": "/d", "PYDI_TOKEN_FILE": "/t"}).has_token
    near = configure({"node": "h:1", "token-file": "/t"}, {"PYDI_TOKEN": "t"})
    assert (near.token, near.token_file) == (None, "/t")
    assert configure({"data-dir": "/d"}, {"PYDI_NODE": "h:1", "PYDI_TOKEN": "t"}).token is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("node", "host"), ("node", "host:"), ("node", ":1"), ("node", "h:0"), ("node", "h:65536"),
        ("node", "::1:7420"), ("driver", "fuse"), ("cache-size", "much"), ("cache-size", "1K"),
        ("group", "10.0.0.1:7420"), ("group", "239.1.1.1:0"), ("group", "host:1"),
        ("group", "[ff12::1"), ("interface", "eth0"), ("interface", "10.0.0.300"),
        ("deadline", "0"), ("deadline", "-1"), ("deadline", "nan"), ("deadline", "99999"),
        ("read-only", "perhaps"), ("options", "rw,sideways"), ("options", "fsname="),
        ("options", "max_read=1"), ("options", "max_read=x"), ("options", "passthrough_after=soon"),
        ("options", "suid"), ("options", "delegations=later"), ("options", "durability=never"),
    ],
)  # fmt: skip
def test_bad_value_names_option_and_place(name: str, text: str) -> None:
    """A value that makes no sense is refused with the place where it was written."""
    option = next(option for option in mount_config.OPTIONS if option.name == name)
    refusal(flags={name: text})
    message = refusal(environ={option.variable: text})
    if name != "options":
        assert option.variable in message
        assert text in message


def test_o_words() -> None:
    """Words of -o become options of the mount; those of fstab mean nothing here."""
    assert parse_mount_options("ro,allow_other,noatime,fsname=x,max_read=65536") == {
        "read_only": True, "allow_other": True, "noatime": True, "fsname": "x", "max_read": 65536,
    }  # fmt: skip
    assert parse_mount_options("defaults,noauto,_netdev,x-systemd.automount,comment=a") == {}
    assert parse_mount_options(" , ") == {}
    assert configure({"options": "noallow_other"}).allow_other_given
    assert not configure({"options": "ro"}).allow_other_given
    for word, seconds in (("0", 0.0), ("2.5", 2.5), ("never", None)):
        assert parse_mount_options(f"passthrough_after={word}") == {"passthrough_after_s": seconds}
    assert configure({}).options.delegations
    assert not configure({"options": "delegations=never"}).options.delegations


def test_how_durable_a_close_is() -> None:
    assert not configure({}).options.closes_behind
    assert configure({"options": "durability=fsync"}).options.closes_behind
    assert not configure({"options": "durability=fsync,durability=close"}).options.closes_behind


def test_debug_reaches_the_binding() -> None:
    """--debug and -o debug are the same."""
    for config in (configure({"debug": "yes"}), configure({"options": "debug"})):
        assert config.debug
        assert config.options.debug


@pytest.mark.parametrize(
    ("text", "size"),
    [("1M", 1 << 20), ("1MiB", 1 << 20), ("1 mb", 1 << 20), ("2g", 2 << 30), ("1.5G", 3 << 29),
     ("1048576", 1 << 20), ("1T", 1 << 40), ("2048k", 2 << 20)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    """Sizes with the usual letters, in powers of 1024."""
    assert parse_size(text) == size


def test_addresses() -> None:
    """HOST:PORT, an IPv6 address in brackets."""
    assert parse_address("h:1") == ("h", 1)
    assert parse_address("[::1]:7420") == ("::1", 7420)


@given(st.text(max_size=30))
def test_no_text_breaks_a_parser(text: str) -> None:
    """Whatever is typed, a parser returns or raises ValueError."""
    for option in mount_config.OPTIONS:
        try:
            option.parse(text)
        except ValueError:
            pass
    try:
        parse_mount_options(text)
    except ValueError:
        pass


@pytest.mark.parametrize(
    "table", [{"nod": "h:1"}, {"driver": True}, {"node": ["a", "b"]}, {"node": {"a": 1}}]
)
def test_file_with_unknown_content_is_refused(table: dict[str, object]) -> None:
    """Unknown options and wrong kinds of values in the file are named, with the file."""
    with pytest.raises(UserError, match=r"^mount\.toml: .*option") as caught:
        mount_config.check_file_table(table, "mount.toml")
    assert caught.value.exit_code == EXIT_USAGE


def test_file_values_are_texts() -> None:
    """TOML's own kinds become what a flag would have been given as."""
    table = {"deadline": 5, "read-only": True, "debug": False, "driver": "kernel"}
    texts = mount_config.check_file_table(table, "mount.toml")
    config = configure(in_file=texts)
    assert config.deadline_s == 5
    assert config.options.read_only
    assert not config.debug
