"""What the work unpacks, clones and installs: made once for each run, on a plain disk.

All three hold the same real files: the standard library of this Python and, when it has too few,
the packages installed beside it. Nothing is fetched from a network.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from scripts.comparison.work import Sizes, command

# The repository and the wheel hold one file in this many of the archive, or a run takes for ever.
SHARE = 4

# A source archive has no libraries in it, and few large files.
COMPILED = (".a", ".o", ".so", ".pyc")
FILE_BYTES_MAX = 1 << 20


def make(folder: Path, sizes: Sizes) -> dict[str, int]:
    """``archive.tar``, ``repository.git`` and a wheel in ``folder``; how large they are."""
    tree = folder / "tree"
    files = 0
    archive_bytes = 0
    for source, name in _real_files(sizes.archive_files):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        files += 1
        archive_bytes += target.stat().st_size
    with tarfile.open(folder / "archive.tar", "w") as archive:
        archive.add(tree, arcname=".")
    share = [path for path in sorted(tree.rglob("*")) if path.is_file()][::SHARE]
    _make_repository(folder, tree, share)
    _make_wheel(folder / "many-1.0-py3-none-any.whl", tree, share)
    shutil.rmtree(tree)
    return {"archive_files": files, "archive_bytes": archive_bytes, "share_files": len(share)}


def _real_files(count: int) -> Iterator[tuple[Path, Path]]:
    """(path, relative path) of up to ``count`` files, in the same order every time."""
    roots = {name: Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")}
    for name, root in roots.items():
        for directory, folders, files in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in ("__pycache__", "site-packages"))
            for file in sorted(files):
                path = Path(directory, file)
                if path.is_symlink() or path.stat().st_size > FILE_BYTES_MAX:
                    continue
                if path.suffix not in COMPILED:
                    if count == 0:
                        return
                    count -= 1
                    yield path, Path(name) / path.relative_to(root)


def _make_repository(folder: Path, tree: Path, share: list[Path]) -> None:
    """Branch ``main`` with these files, and ``changed``, where every fourth is longer by a line."""
    work = folder / "repository"
    for path in share:
        target = work / path.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    git = ("git", "-C", work)
    command("git", "init", "-q", "-b", "main", work)
    command(*git, "add", "-f", ".")
    command(*git, "commit", "-q", "-m", "all")
    command(*git, "checkout", "-q", "-b", "changed")
    for path in share[::4]:
        with (work / path.relative_to(tree)).open("ab") as file:
            file.write(b"\n# changed\n")
    command(*git, "commit", "-q", "-a", "-m", "changed")
    command(*git, "checkout", "-q", "main")
    command("git", "clone", "-q", "--bare", work, folder / "repository.git")
    shutil.rmtree(work)


def _make_wheel(wheel: Path, tree: Path, share: list[Path]) -> None:
    """A package ``many`` with these files as its data (PEP 427)."""
    contents = {f"many/{path.relative_to(tree)}": path.read_bytes() for path in share}
    info = "many-1.0.dist-info"
    contents[f"{info}/METADATA"] = b"Metadata-Version: 2.1\nName: many\nVersion: 1.0\n"
    contents[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(
        f'"{name}",sha256={_digest(content)},{len(content)}\n' for name, content in contents.items()
    )
    contents[f"{info}/RECORD"] = f"{record}{info}/RECORD,,\n".encode()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
