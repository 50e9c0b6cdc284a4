"""The tables of docs/protocol.md, made from the tables of the code.

For tests/unit/wire/test_document.py, which compares them, and for whoever adds a message:

    python -c 'import sys; from pydi_node.wire.document import updated; \
               sys.stdout.write(updated(sys.stdin.read()))' < docs/protocol.md

Pure: text in, text out. Nothing else uses it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

from pydi_node.commands import BATCH_COMMANDS_MAX, COMMAND_CODES, EXTENTS_PER_COMMAND_MAX
from pydi_node.wire import failures, fields, frames, messages, session
from pydi_node.wire.events import Refusal
from pydi_node.wire.messages import REQUESTS, Payload, Role

_MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def updated(text: str) -> str:
    """``text`` with each marked table as the code has it now; KeyError for an unknown mark."""
    return _MARKED.sub(lambda match: match[1] + TABLES[match[2]]() + match[3], text)


def _table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(titles), *[[str(cell).replace("|", "\\|") for cell in row] for row in rows]]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _kinds() -> str:
    return _table(
        ("kind", "name", "when the receiver is", "from", "to", "header after the kind", "payload"),
        (
            (
                kind.value,
                kind.name,
                rule.state.value,
                "node" if rule.sender_is_node else "anyone",
                "node" if rule.receiver_is_node else "anyone",
                ", ".join(rule.fields),
                "yes" if rule.payload else "no",
            )
            for kind, rule in session.KIND_RULES.items()
        ),
    )


def _requests() -> str:
    return _table(
        ("code", "request", "fields", "who", "changes", "payload", "answer"),
        (
            (
                spec.code,
                spec.name,
                ", ".join(f"{f.name}: {f.type}" for f in dataclasses.fields(spec.cls)) or "none",
                "all" if spec.roles == frozenset(Role) else ", ".join(sorted(spec.roles)),
                "yes" if spec.mutates else "no",
                "yes" if spec.payload is Payload.REQUIRED else "no",
                spec.answer,
            )
            for spec in REQUESTS
        ),
    )


def _pushes() -> str:
    return _table(
        ("code", "push", "fields"),
        (
            (code, cls.__name__, ", ".join(f"{f.name}: {f.type}" for f in dataclasses.fields(cls)))
            for code, cls in messages.PUSH_CLASSES.items()
        ),
    )


def _commands() -> str:
    return _table(
        ("code", "command", "fields"),
        (
            (code, cls.__name__, ", ".join(f.name for f in dataclasses.fields(cls)))
            for cls, code in COMMAND_CODES.items()
        ),
    )


def _failures() -> str:
    return _table(("code", "exception"), failures.table())


def _refusals() -> str:
    return _table(("code", "refusal"), ((item.value, item.name) for item in Refusal))


def _limits() -> str:
    before, after = frames.LIMITS_BEFORE_WELCOME, frames.LIMITS_AFTER_WELCOME
    return _table(
        ("what", "limit"),
        (
            ("header before the welcome", f"{before.header_max_bytes} bytes"),
            ("payload before the welcome", f"{before.payload_max_bytes} bytes"),
            ("header after the welcome", f"{after.header_max_bytes} bytes"),
            ("payload after the welcome", f"{after.payload_max_bytes} bytes"),
            ("requests without an answer, each way", session.REQUESTS_MAX),
            ("content in them, of a client", f"{session.PAYLOAD_OUTSTANDING_MAX_BYTES} bytes"),
            ("pings without a pong, each way", session.PINGS_MAX),
            ("deadline of a request", f"{session.DEADLINE_MAX_MS} ms"),
            ("length of one BlobRead", f"{messages.CHUNK_MAX_BYTES} bytes"),
            ("limit of one ReadDir", f"{messages.READDIR_LIMIT_MAX} entries"),
            ("extents, and blobs, of one command", EXTENTS_PER_COMMAND_MAX),
            ("commands of a Batch", BATCH_COMMANDS_MAX),
            ("inodes, and names, of one Touched", messages.TOUCHED_MAX),
            ("plain value (Admin, about)", f"{fields.PLAIN_MAX_BYTES} bytes"),
            ("depth of a plain value", fields.PLAIN_DEPTH_MAX),
            ("sentence", f"{failures.SENTENCE_MAX_CHARACTERS} characters"),
        ),
    )


TABLES: dict[str, Callable[[], str]] = {
    "kinds": _kinds,
    "requests": _requests,
    "pushes": _pushes,
    "commands": _commands,
    "failures": _failures,
    "refusals": _refusals,
    "limits": _limits,
}
