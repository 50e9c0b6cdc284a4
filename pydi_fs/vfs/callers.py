"""Who sent a request, beyond what the kernel says of him."""

from __future__ import annotations


def groups_of(pid: int) -> tuple[int, ...]:
    """Supplementary groups of a process; none if it is gone or in a foreign pid namespace."""
    try:
        with open(f"/proc/{pid}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(int(group) for group in line.split()[1:])
    except OSError:
        pass  # fewer groups only refuse more
    return ()
