"""``pydi completion``: scripts that teach bash, zsh and fish the commands, their flags and paths.

Called by `pydi_fs.cli`, which hands in what its table of commands says. Pure. Paths of the tree are
asked of the cluster while one types, with a deadline of a second; what goes wrong there completes
nothing and says nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

LOCAL_FIRST = "put"  # its sources are files of this machine
LOCAL_LAST = "get"  # its target is
ASK = "pydi ls -F --deadline 1 --"


class Command(NamedTuple):
    """What completion knows of one."""

    help: str
    flags: Mapping[str, str]  # flag -> help
    has_paths: bool


Commands = Mapping[str, Command]


def bash(commands: Commands, value_flags: Sequence[str]) -> str:
    """For ``source <(pydi completion bash)``.

    value_flags  flags whose next word is their value and no command.
    """
    cases = "\n".join(
        f"        {name}) flags={shlex.quote(' '.join(command.flags))} ;;"
        for name, command in commands.items()
    )
    remote = "|".join(name for name, command in commands.items() if command.has_paths)
    return f"""\
# pydi completion bash
_pydi_remote() {{
    local word dir name
    word=$(eval "printf %s $1" 2>/dev/null) || return
    dir=${{word%"${{word##*/}}"}}
    while IFS= read -r name; do
        [[ $dir$name == "$word"* ]] && COMPREPLY+=("$(printf %q "$dir$name")")
    done < <({ASK} "${{dir:-/}}" 2>/dev/null)
}}
_pydi() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} command= flags= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {"|".join(value_flags)}) ((i++)) ;;
            -*) ;;
            *) command=${{COMP_WORDS[i]}}; break ;;
        esac
    done
    if [[ -z $command ]]; then
        COMPREPLY=($(compgen -W {shlex.quote(" ".join(commands))} -- "$current"))
        return
    fi
    case $command in
{cases}
    esac
    if [[ $current == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$current"))
        return
    fi
    compopt -o nospace 2>/dev/null
    case $command in
        {LOCAL_FIRST}|{LOCAL_LAST}) compopt -o filenames 2>/dev/null
            COMPREPLY=($(compgen -f -- "$current")); _pydi_remote "$current" ;;
        {remote}) _pydi_remote "$current" ;;
    esac
}}
complete -F _pydi pydi
"""


def zsh(commands: Commands, value_flags: Sequence[str]) -> str:
    """For a file ``_pydi`` in the ``fpath``, or ``source <(pydi completion zsh)``."""
    described = "\n".join(
        f"        {shlex.quote(f'{name}:{command.help}')}" for name, command in commands.items()
    )
    cases = "\n".join(
        f"        {name}) flags=("
        + " ".join(shlex.quote(f"{flag}:{text}") for flag, text in command.flags.items())
        + ") ;;"
        for name, command in commands.items()
    )
    remote = "|".join(name for name, command in commands.items() if command.has_paths)
    return f"""\
#compdef pydi
_pydi_remote() {{
    local word=${{(Q)PREFIX}} dir
    dir=${{word%"${{word##*/}}"}}
    local -a names
    names=("${{(@f)$({ASK} "${{dir:-/}}" 2>/dev/null)}}")
    names=(${{names:#}})
    (( $#names )) && compadd -S '' -- "$dir"${{^names}}
}}
_pydi() {{
    local command= i
    local -a commands flags
    commands=(
{described}
    )
    for ((i = 2; i < CURRENT; i++)); do
        case ${{words[i]}} in
            {"|".join(value_flags)}) ((i++)) ;;
            -*) ;;
            *) command=${{words[i]}}; break ;;
        esac
    done
    if [[ -z $command ]]; then
        _describe command commands
        return
    fi
    case $command in
{cases}
    esac
    if [[ $PREFIX == -* ]]; then
        _describe flag flags
        return
    fi
    case $command in
        {LOCAL_FIRST}|{LOCAL_LAST}) _files; _pydi_remote ;;
        {remote}) _pydi_remote ;;
    esac
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _pydi "$@"; else compdef _pydi pydi; fi
"""


def fish(commands: Commands, value_flags: Sequence[str]) -> str:
    """For ``pydi completion fish | source``."""
    names = " ".join(commands)
    lines = [
        "# pydi completion fish",
        "function __pydi_remote",
        "    set -l word (string unescape -- (commandline -ct))",
        "    set -l dir (string replace -r '[^/]*$' '' -- \"$word\")",
        "    set -l from $dir",
        "    test -n \"$from\"; or set from /",
        f"    for name in ({ASK} $from 2>/dev/null)",
        "        echo $dir$name",
        "    end",
        "end",
        "complete -c pydi -f",
    ]  # fmt: skip
    for name, command in commands.items():
        seen = f"__fish_seen_subcommand_from {name}"
        lines.append(
            f"complete -c pydi -n 'not __fish_seen_subcommand_from {names}' -a {name}"
            f" -d {_fish(command.help)}"
        )
        for flag, text in command.flags.items():
            value = " -r" if flag in value_flags else ""
            lines.append(
                f"complete -c pydi -n '{seen}' -l {flag.removeprefix('--')}{value} -d {_fish(text)}"
            )
        if command.has_paths:
            lines.append(f"complete -c pydi -n '{seen}' -a '(__pydi_remote)'")
        if name in (LOCAL_FIRST, LOCAL_LAST):
            lines.append(f"complete -c pydi -n '{seen}' -F")
    return "\n".join(lines) + "\n"


def _fish(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SHELLS: Mapping[str, Callable[[Commands, Sequence[str]], str]] = {
    "bash": bash, "fish": fish, "zsh": zsh,
}  # fmt: skip
