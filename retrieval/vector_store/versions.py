"""Versions of an index on disk: built aside, published by one rename, checked by checksum, rolled back by another.

index/current -> versions/000002      a symlink, replaced in one step
index/versions/000001, 000002         each with index.json, which holds a SHA-256 per file
index/.partial/                       what a killed build left, for the next one to go on with
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from retrieval.files import read_json, write_json

ABOUT = "index.json"
KEEP = 3
"""How many versions lie on disk, the current one included."""


class DamagedIndex(ValueError):
    """A file of the index is missing or not what was written."""


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """Hold the index for writing; readers need no lock. Raises ValueError at once if somebody else holds it."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is changing {root}: wait for it to end") from None
    try:
        yield
    finally:
        lock.release()


def current(root: Path) -> Path:
    """The folder of the version that readers are given. Raises FileNotFoundError."""
    link = root / "current"
    if not link.exists():
        raise FileNotFoundError(f"{root} holds no index: mmrec index build makes one")
    return link.resolve()


def all_versions(root: Path) -> list[Path]:
    """Oldest first."""
    return sorted(path.resolve() for path in (root / "versions").glob("[0-9]*"))


def publish(root: Path, work: Path, about: Mapping[str, Any], known: Mapping[str, str] | None = None) -> Path:
    """Write index.json into the finished folder `work`, make it the current version and drop the oldest.

    known: checksums of files that were linked from another version and need not be read again.
    """
    files = {}
    for file in sorted(file for file in work.rglob("*") if file.is_file() and file.name != ABOUT):
        name = str(file.relative_to(work))
        files[name] = (known or {}).get(name) or sha256(file)
    parent = int(current(root).name) if (root / "current").exists() else None
    record = {**about, "parent": parent, "files": files}
    write_json(work / ABOUT, {**record, "checksum": _checksum(record)})
    numbers = [int(path.name) for path in all_versions(root)]
    version = root / "versions" / f"{max(numbers, default=0) + 1:06d}"
    version.parent.mkdir(exist_ok=True)
    os.replace(work, version)
    point(root, version)
    sweep(root)
    return version.resolve()


def sweep(root: Path) -> None:
    """Drop the oldest versions, never the current one. A reader that has one open keeps its files until it closes."""
    now = current(root)
    others = [path for path in all_versions(root) if path != now]
    for old in others[: max(0, len(others) - (KEEP - 1))]:
        shutil.rmtree(old, ignore_errors=True)


def point(root: Path, version: Path) -> None:
    """Make `version` the one that readers are given."""
    fresh = root / ".current"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path("versions") / version.name, target_is_directory=True)
    os.replace(fresh, root / "current")


def rollback(root: Path, to: int | None = None) -> Path:
    """Go back to the version that the current one was made after, or to version `to`, once its checksums hold.

    Raises ValueError if there is no such version or it is damaged.
    """
    root = Path(root)
    with writing(root):
        versions, now = all_versions(root), current(root)
        number = _parent(now, versions) if to is None else to
        wanted = [path for path in versions if int(path.name) == number]
        if not wanted:
            lying = ", ".join(str(int(path.name)) for path in versions)
            raise ValueError(f"{root} has no version {number or 'before this one'} any more; it has {lying}: --to N")
        verify(wanted[0])
        point(root, wanted[0])
        return wanted[0]


def verify(version: Path, *names: str) -> dict[str, Any]:
    """index.json of a version whose files (all, or `names`) are what was written. Raises DamagedIndex."""
    try:
        about = read_json(version / ABOUT)
        files = about["files"]
        if about.pop("checksum") != _checksum(about):
            raise ValueError("it is not what was written")
    except (OSError, ValueError, KeyError) as error:
        raise DamagedIndex(f"{version} is damaged: {ABOUT} cannot be read ({error}); {_mend()}") from error
    for name in [name for name in names or files if name != ABOUT]:
        if not (version / name).is_file() or sha256(version / name) != files.get(name):
            raise DamagedIndex(f"{version} is damaged: {name} is missing or not what was written; {_mend()}")
    return about


def link(source: Path, target: Path) -> None:
    """The same file under a second name; a copy where the disk has no hard links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _parent(version: Path, versions: list[Path]) -> int | None:
    """The number of the version that this one was made after; the one numbered before it if it cannot tell."""
    try:
        return verify(version, ABOUT)["parent"]
    except DamagedIndex:
        return max((int(path.name) for path in versions if path.name < version.name), default=None)


def _checksum(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _mend() -> str:
    return "mmrec index rollback goes to the version before, mmrec index build makes it again"
