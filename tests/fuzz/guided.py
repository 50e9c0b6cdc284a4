"""One target under atheris: ``python -m tests.fuzz.guided TARGET [libFuzzer's arguments]``.

Started by `tests.fuzz --atheris`, for libFuzzer ends its process. Our packages are instrumented
while they are loaded, and nothing else: all of the standard library takes minutes.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["pydi_node"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    name, *flags = sys.argv[1:]
    feed = TARGETS[name].feed

    def test_one_input(data: bytes) -> None:
        feed(data)

    atheris.Setup([sys.argv[0], *flags], test_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
