"""The workspace: the truth on disk, one folder with one artifact per stage.

``workspace/<stage>`` is a symlink to a finished version under ``.versions/``. A stage writes into
``.partial/<stage>-<fingerprint>/``, where a killed run leaves its shards and checkpoints for the next one; when it is
done the folder is renamed and the symlink replaced in one step: readers see the old artifact or the new, never half.
One process writes at a time; who it is stands in ``.holder.json``.

``artifact.json`` in every version says what it was made from: the fingerprints of its inputs, its options, a SHA-256
per file, and one of all this. The fingerprint covers mmrec's own version too, since defaults change with it. A stage
whose fingerprint is unchanged is skipped; a stale, foreign or damaged one is refused with the command that mends it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmrec import __version__
from mmrec.errors import MmrecError, StaleArtifact

CHECKPOINTS = ".checkpoint"
"""Folder inside a stage's working folder that is dropped when the stage finishes."""

MENDS = {
    "catalog": "mmrec ingest SOURCE",
    "interactions": "mmrec ingest SOURCE --log LOG",
    "embeddings": "mmrec embed",
    "vectors": "mmrec embed",
    "ids": "mmrec tokenize",
    "retriever": "mmrec train retriever",
    "prior": "mmrec train prior",
    "hybrid": "mmrec train hybrid",
    "decoder": "mmrec train decoder",
    "index": "mmrec index build",
    "evaluation": "mmrec evaluate",
    "additions": "mmrec add",
}
"""The command that makes each stage's artifact."""

RECORD = {"stage", "fingerprint", "inputs", "options", "files"}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
FULL_IN_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|File too large|\d+ requested and \d+ written|"
    r"failed writing|enforce fail at inline_container"
)
"""How safetensors, FAISS, Arrow, NumPy and torch tell of a full disk without its error number."""
CLOSED = {errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class Artifact:
    """A finished artifact: where it lies and what it was made from."""

    stage: str
    path: Path
    fingerprint: str
    inputs: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


class Workspace:
    """One workspace folder. Reading never writes; `build` is the only way to write an artifact.

    Args:
        root: the folder; made by the first `build`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._verified: dict[Path, Artifact] = {}

    def __repr__(self) -> str:
        return f"Workspace({str(self.root)!r})"

    def mend(self, stage: str) -> str:
        """The command a person types to make the artifact of ``stage``."""
        return f"{MENDS[stage]} -w {self.root}"

    def current(self, stage: str) -> Artifact | None:
        """The artifact of ``stage`` with every checksum verified, or None if there is none.

        Raises:
            StaleArtifact: if a file of it is missing or differs from what was written.
        """
        link = self.root / stage
        if not (link / "artifact.json").is_file():
            return None
        version = link.resolve()
        if version not in self._verified:
            try:
                self._verified[version] = self._read(stage, version)
            except StaleArtifact:
                if link.resolve() == version:
                    raise
                return self.current(stage)  # it was replaced while it was read
        return self._verified[version]

    def _read(self, stage: str, version: Path) -> Artifact:
        damaged = f"{self.root / stage} is damaged"
        try:
            record = json.loads((version / "artifact.json").read_text(encoding="utf-8"))
            told = record.pop("checksum", None)  # older artifacts have none
            if (told or _checksum_of(record)) != _checksum_of(record) or set(record) != RECORD:
                raise ValueError("it is not what was written")
            artifact = Artifact(
                stage, version, record["fingerprint"], record["inputs"], record["options"], record["files"]
            )
            if record["stage"] != stage:
                raise StaleArtifact(f"{version} holds the artifact of stage {record['stage']!r}", mend=self.mend(stage))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StaleArtifact(f"{damaged}: artifact.json cannot be read ({error})", mend=self.mend(stage)) from error
        for name, checksum in artifact.files.items():
            file = version / name
            if not file.is_file() or _sha256(file) != checksum:
                raise StaleArtifact(f"{damaged}: {name} is missing or not what was written", mend=self.mend(stage))
        return artifact

    def require(self, stage: str) -> Artifact:
        """The artifact of ``stage``, certain to be whole and made from the artifacts that lie here now.

        Raises:
            StaleArtifact: if it is absent, damaged, or made from another catalog or an older input.
        """
        artifact = self.current(stage)
        if artifact is None:
            raise StaleArtifact(f"{self.root} has no {stage} yet", mend=self.mend(stage))
        for name, fingerprint in artifact.inputs.items():
            if name not in MENDS:
                continue
            source = self.require(name)
            if source.fingerprint != fingerprint:
                raise StaleArtifact(
                    f"{self.root / stage} was made from {name} {fingerprint[:8]}, but {name} here is "
                    f"{source.fingerprint[:8]}: it is stale or belongs to another catalog",
                    mend=self.mend(stage),
                )
        return artifact

    def build(
        self,
        stage: str,
        inputs: Mapping[str, str],
        options: Mapping[str, Any],
        write: Callable[[Path], None],
        *,
        force: bool = False,
    ) -> tuple[Artifact, bool]:
        """Make the artifact of ``stage`` unless a fresh one lies here.

        Args:
            stage: a key of `MENDS`.
            inputs: name -> fingerprint of everything the artifact is made from.
            options: JSON-able options of the stage; part of the fingerprint.
            write: writes every file of the artifact into the folder it is given. The folder may hold what a killed
                run with the same fingerprint left; files under `CHECKPOINTS` in it are dropped at the end.
            force: build even if fresh.

        Returns:
            The artifact, and whether it was built (False: it was fresh).
        """
        told = {"stage": stage, "version": __version__, "inputs": dict(inputs), "options": dict(options)}
        fingerprint = fingerprint_of(told)
        with writing(self.root), self.lock():
            self._clear_the_way(stage)
            try:
                artifact = self.current(stage)
            except StaleArtifact:
                artifact = None
            if artifact is not None and artifact.fingerprint == fingerprint and not force:
                return artifact, False
            version = self._finished(stage, fingerprint)
            if version is not None and not force:  # a run was killed between its last file and the symlink
                self._point(stage, version)
                self._sweep(stage, keep=version)
                return self.require(stage), True
            version = self._unused(stage, fingerprint)
            work = self.root / ".partial" / f"{stage}-{fingerprint}"
            work.mkdir(parents=True, exist_ok=True)
            if not (work / "artifact.json").is_file():  # written last: a run that left it had only to publish
                write(work)
                self._record(stage, work, fingerprint, inputs, options)
            shutil.rmtree(work / CHECKPOINTS, ignore_errors=True)
            version.parent.mkdir(exist_ok=True)
            os.replace(work, version)
            self._point(stage, version)
            self._sweep(stage, keep=version)
            return self.require(stage), True

    def _record(
        self, stage: str, work: Path, fingerprint: str, inputs: Mapping[str, str], options: Mapping[str, Any]
    ) -> None:
        files = {}
        for file in sorted(file for file in work.rglob("*") if file.is_file()):
            name = file.relative_to(work)
            if file.name.startswith("."):  # a temporary file of a killed run
                file.unlink()
            elif name.parts[0] != CHECKPOINTS:
                files[str(name)] = _sha256(file)
        artifact = Artifact(stage, work, fingerprint, dict(inputs), json_able(dict(options)), files)
        record = {key: value for key, value in asdict(artifact).items() if key != "path"}
        record["checksum"] = _checksum_of(record)
        write_text(work / "artifact.json", json.dumps(record, indent=1, sort_keys=True))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the workspace for writing.

        Raises:
            MmrecError: at once, if another process holds it; it names that process.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise MmrecError(
                f"another mmrec process is working on {self.root}{self._holder()}",
                mend="wait for it to end, or use another -w WORKSPACE",
            ) from None
        me = {
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        with suppress(OSError):  # a full disk: the lock holds without a name on it
            write_text(self.root / ".holder.json", json.dumps(me))
        try:
            yield
        finally:
            with suppress(OSError):
                (self.root / ".holder.json").unlink()
            lock.release()

    def _holder(self) -> str:
        """Who holds the lock, in words; nothing if it has just let go."""
        try:
            held = json.loads((self.root / ".holder.json").read_text(encoding="utf-8"))
            return f": process {held['pid']} on {held['host']} since {held['since']} ({held['command']})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _finished(self, stage: str, fingerprint: str) -> Path | None:
        """A whole version with this fingerprint, whether or not the symlink has come to it yet."""
        for version in sorted((self.root / ".versions").glob(f"{stage}-{fingerprint}*")):
            try:
                self._read(stage, version)
                return version
            except StaleArtifact:
                continue
        return None

    def _unused(self, stage: str, fingerprint: str) -> Path:
        """Where a new version goes: never onto the one that readers have before them."""
        version = self.root / ".versions" / f"{stage}-{fingerprint}"
        again = 1
        while version.exists():
            again += 1
            version = version.with_name(f"{stage}-{fingerprint}-{again}")
        return version

    def _clear_the_way(self, stage: str) -> None:
        """Refuse to start where a folder of somebody's own stands in the symlink's place; a copied artifact may go."""
        link = self.root / stage
        if link.is_symlink() or not link.exists():
            return
        if not (link / "artifact.json").is_file():
            raise MmrecError(f"{link} is in the way: an artifact would be put there", mend=f"move {link} elsewhere")
        (self.root / ".versions").mkdir(exist_ok=True)
        version = self._unused(stage, "copied")
        os.replace(link, version)
        self._point(stage, version)

    def _point(self, stage: str, version: Path) -> None:
        link = self.root / stage
        fresh = self.root / f".{stage}.link"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(version.relative_to(self.root), target_is_directory=True)
        os.replace(fresh, link)

    def _sweep(self, stage: str, keep: Path) -> None:
        for folder in (self.root / ".versions", self.root / ".partial"):
            for other in folder.glob(f"{stage}-*"):
                if other != keep:
                    shutil.rmtree(other, ignore_errors=True)


def fingerprint_of(value: Any) -> str:
    """A short stable name for a JSON-able value: 16 hex digits of its SHA-256."""
    return hashlib.sha256(json.dumps(json_able(value), sort_keys=True).encode()).hexdigest()[:16]


def fingerprint_of_source(source: Path) -> str:
    """A fingerprint of a file's bytes, or of the names, sizes and modification times of the files of a folder.

    Raises:
        MmrecError: if there is nothing at ``source``.
    """
    if source.is_file():
        return _sha256(source)[:16]
    if not source.is_dir():
        raise MmrecError(f"there is no file or folder at {source}", mend="give the path of the catalog or the log")
    stats = ((str(file.relative_to(source)), file.stat()) for file in sorted(source.rglob("*")) if file.is_file())
    return fingerprint_of([(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats])


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a killed process leaves the old file or the new one."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as f:
            try:
                f.write(content)
                f.flush()
                os.fsync(f.fileno())
            except OSError:
                Path(f.name).unlink()  # half of it would take room on a full disk
                raise
        os.chmod(f.name, 0o644)
        os.replace(f.name, path)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Say it in words, with the mend, if what is written in ``folder`` meets a full disk or may not be written.

    Raises:
        MmrecError: in place of whatever the library that wrote raised.
    """
    try:
        yield
    except MmrecError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL or FULL_IN_WORDS.search(str(error)):
            raise MmrecError(
                f"there is no room left to write in {folder} ({error}); what was finished before is whole",
                mend="make room, then give the same command again: it goes on where it stopped",
            ) from error
        if isinstance(error, OSError) and (
            number == errno.EROFS or (number in CLOSED and _is_in(folder, error.filename))
        ):
            raise MmrecError(
                f"{folder} cannot be written in ({error})",
                mend="make the folder writable, or copy it to a place that is",
            ) from error
        raise


def _is_in(folder: Path, file: object) -> bool:
    return isinstance(file, str | os.PathLike) and Path(file).absolute().is_relative_to(folder.absolute())


def json_able(value: Any) -> Any:
    """``value`` with paths as strings and tuples as lists, ready for `json.dumps`."""
    return json.loads(json.dumps(value, default=str, sort_keys=True))


def _checksum_of(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
