"""Options from flags, environment, file and defaults, and the sentences for mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from pydi_node.cli import build_parser, parse_config
from pydi_node.config import (
    OPTIONS,
    Address,
    NodeConfig,
    load_config,
    parse_address,
)
from pydi_node.discovery.group import Group
from pydi_node.errors import EXIT_USAGE, UserError


def load(
    flags: dict[str, list[str]] | None = None,
    environ: dict[str, str] | None = None,
    file: Path | None = None,
) -> NodeConfig:
    return load_config(flags or {}, {"HOME": "/home/u"} | (environ or {}), 1000, file)


def test_nearer_places_win(tmp_path: Path) -> None:
    """Flag before environment before file before default, for every single option."""
    file = tmp_path / "c.toml"
    file.write_text('number = 3\nlisten = "h:3"\nlog-level = "error"\npeer = ["a:3", "b:3"]\n')
    environ = {"PYDI_NUMBER": "2", "PYDI_LISTEN": "h:2", "PYDI_PEER": "a:2, b:2"}
    config = load({"number": ["1"]}, environ, file)
    assert (config.number, config.listen, config.log_level) == (1, Address("h", 2), "error")
    assert config.peers == (Address("a", 2), Address("b", 2))
    assert load(file=file).peers == (Address("a", 3), Address("b", 3))
    assert load().listen == Address("::", 7420)


def test_config_file_of_the_data_dir_is_read(tmp_path: Path) -> None:
    """DATA_DIR/config.toml needs no naming; another missing file is a mistake."""
    (tmp_path / "config.toml").write_text("number = 9\n")
    assert load({"data-dir": [str(tmp_path)]}).number == 9
    with pytest.raises(UserError, match="no such file"):
        load(file=tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:1", Address("host", 1)),
        ("host", Address("host", 7)),
        ("[::1]:2", Address("::1", 2)),
        ("[::1]", Address("::1", 7)),
        ("0.0.0.0:0", Address("0.0.0.0", 0)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    """What people write, and that it can be read back."""
    assert parse_address(text, 7) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", ":1", "h:", "h:x", "h:65536", "h:-1", "::1:2", "[::1", "[]:1"]
)
def test_malformed_addresses(text: str) -> None:
    """ValueError, for whoever knows which option it was."""
    with pytest.raises(ValueError):
        parse_address(text, 7)


@pytest.mark.parametrize(
    ("flags", "environ", "text", "words"),
    [
        ({"number": ["x"]}, {}, "", "--number"),
        ({"number": ["0"]}, {}, "", "--number 0"),
        ({}, {"PYDI_LISTEN": "h:x"}, "", "PYDI_LISTEN"),
        ({"peer": ["h:0"]}, {}, "", "--peer h:0"),
        ({"join": ["t"], "token-file": ["f"]}, {}, "", "--join and --token-file"),
        ({}, {}, "colour = 1", "unknown option 'colour'"),
        ({}, {}, "number = true", "number"),
        ({}, {}, "number = ", "not a TOML file"),
        ({}, {"PYDI_LOG_LEVEL": "loud"}, "", "loud"),
    ],
)
def test_mistakes_are_one_sentence(
    tmp_path: Path, flags: dict[str, list[str]], environ: dict[str, str], text: str, words: str
) -> None:
    """UserError with exit code 2 that names the option and where it was written."""
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=words) as mistake:
        load(flags, environ, file)
    assert mistake.value.exit_code == EXIT_USAGE


def test_nearer_token_replaces_a_farther_one() -> None:
    """Only two tokens from the same place clash."""
    config = load({"join": ["t"]}, {"PYDI_TOKEN_FILE": "/f"})
    assert (config.join_token, config.token_file) == ("t", None)
    config = load({"token-file": ["/f"]}, {"PYDI_JOIN": "t"})
    assert (config.join_token, config.token_file) == (None, Path("/f"))


def test_every_option_is_a_flag_that_reaches_the_config(tmp_path: Path) -> None:
    """The command line is made from the table and loses none of it."""
    texts = {
        "number": "4", "listen": "h:1", "peer": "p:2", "token-file": "/f", "log-level": "debug",
        "group": "239.1.2.3:4", "interface": "10.0.0.1",
    }  # fmt: skip
    arguments = [str(tmp_path), *(f"--{name}={text}" for name, text in texts.items())]
    config = parse_config(arguments)
    assert config == NodeConfig(
        tmp_path,
        4,
        Address("h", 1),
        (Address("p", 2),),
        None,
        Path("/f"),
        "debug",  # type: ignore[arg-type]
        group=Group("239.1.2.3", "", 4),
        interfaces=("10.0.0.1",),
    )
    assert texts.keys() | {"join", "data-dir", "witness"} == {option.name for option in OPTIONS}
    assert parse_config([str(tmp_path), "--join", "T"]).join_token == "T"


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """--help exits 0 and shows the whole table."""
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{option.name}" in shown for option in OPTIONS if option.name != "data-dir")


def test_flags_may_not_be_shortened() -> None:
    """A later option must not change what a script's shortened flag means."""
    with pytest.raises(UserError):
        parse_config(["--num", "1"])


def test_switches(tmp_path: Path) -> None:
    """--witness takes no value; the variable and the file say yes or no; a flag wins over both."""
    assert parse_config([str(tmp_path), "--witness"]).witness is True
    assert parse_config([str(tmp_path)]).witness is False
    assert load(environ={"PYDI_WITNESS": "1"}).witness is True
    file = tmp_path / "c.toml"
    file.write_text("witness = true\n")
    assert load(file=file).witness is True
    assert load(environ={"PYDI_WITNESS": "no"}, file=file).witness is False
    with pytest.raises(UserError, match="yes or no"):
        load(environ={"PYDI_WITNESS": "perhaps"})
    file.write_text("witness = 1\n")
    with pytest.raises(UserError, match="true or false"):
        load(file=file)
