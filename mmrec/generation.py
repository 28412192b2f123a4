"""Batch jobs: pictures and music for many people into one folder, resumable, the same whatever is killed in between.

A person's output depends on the workspace, the person, the seed and the options only, not on the engine that made it.
Each person's files and manifest part are written under a temporary name and renamed, so a finished person is never made
again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mmrec.engines import Engine, Files, LocalEngine, Task
from mmrec.errors import MmrecError
from mmrec.progress import progress
from mmrec.workspace import Workspace, fingerprint_of, write_text, writing

if TYPE_CHECKING:
    from diffusion.guidance import Dials
    from mmrec.recommender import Creation, Dream, Recommender


def generate(
    recommender: Recommender,
    medium: Literal["image", "audio"],
    users: Sequence[str],
    destination: Path,
    *,
    per_user: int = 4,
    text: str = "",
    avoid: str = "",
    steps: int = 8,
    dials: Dials | None = None,
    edit: str | None = None,
    strength: float = 0.3,
    candidates: int | None = None,
    seed: int = 0,
    batch_size: int = 16,
    engine: Engine | None = None,
) -> Path:
    """Make ``per_user`` pictures or clips for each person, in this process or by another ``engine``.

    Writes ``<user>/<n>.png`` (or ``.ogg``) with their origin in the file's own metadata, and ``manifest.parquet`` with
    one row per file: user, file, seed, text, avoid, weights of the conditions, edited item and strength, steps,
    decoder, embedding, novelty, grounded items with scores, checks.

    Args:
        dials: weights of the conditions.
        edit: an item of which everybody gets a version of their own, and how far it may go (``strength``).
        candidates: dreams for each that is kept, and drawings for each that is shown; None is the facade's choice.
        batch_size: people whose dreams are dreamt in one go. It changes the speed, not a bit of the output.

    Returns:
        The path of the manifest.

    Raises:
        MmrecError: for an unknown person or item, or if ``destination`` holds another job.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from diffusion.guidance import Dials

    users = list(dict.fromkeys(users))
    for user in users:
        recommender.history(user)
    recommender.workspace.require("prior")
    options: dict[str, Any] = {
        "medium": medium,
        "per_user": per_user,
        "text": text,
        "avoid": avoid,
        "steps": steps,
        "weights": asdict(dials or Dials()),
        "edit": edit,
        "strength": strength,
        "candidates": candidates,
        "seed": seed,
    }
    if edit is not None:
        recommender.similar(edit, k=1)  # raises for an unknown item
    decoder = recommender.decoder(medium).name
    job = fingerprint_of({"parts": _parts(recommender.workspace), "decoder": decoder, **options})
    started = destination / "job.json"
    if started.is_file() and json.loads(started.read_text(encoding="utf-8"))["job"] != job:
        raise MmrecError(
            f"{destination} holds the output of another job", mend="give another --out, or delete that folder"
        )
    write_text(started, json.dumps({"job": job, **options}, indent=1))
    folders = {user: destination / _folder_name(user) for user in users}
    waiting = [user for user, folder in folders.items() if not (folder / "manifest.json").is_file()]
    engine = engine or LocalEngine()
    together = batch_size if isinstance(engine, LocalEngine) else 1  # other engines send each person elsewhere
    tasks: list[Task] = [
        {"user": user, "folder": folders[user].name, "together": waiting[place : place + together]}
        for place, user in ((row - row % together, user) for row, user in enumerate(waiting))
    ]
    with writing(destination), progress(f"creating for {len(users):,} people", unit="people") as tick:
        made = engine.run(Maker(recommender, options), tasks)
        for done, (task, files) in enumerate(zip(tasks, made, strict=True), len(users) - len(tasks) + 1):
            partial = destination / f".{task['folder']}.part"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            for name, content in files.items():
                (partial / name).write_bytes(content)
            os.replace(partial, folders[task["user"]])
            tick(done, len(users))
    rows = [
        row for folder in folders.values() for row in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    ]
    temporary = destination / ".manifest.parquet"
    with writing(destination):
        pq.write_table(pa.Table.from_pylist(rows), temporary)
        temporary.replace(destination / "manifest.parquet")
    return destination / "manifest.parquet"


def save(creation: Creation, path: Path, told: dict[str, object]) -> Path:
    """Write one creation with where it came from inside the file; returns the path with its suffix.

    ``told`` goes into the PNG's text chunk or the Ogg's comment, so that the file says by itself that it was generated.
    Then the file is opened again as anybody would open it.

    Raises:
        MmrecError: if it cannot be read back, or does not tell where it came from.
    """
    origin = json.dumps({"made_by": "mmrec (generated)", "decoder": creation.decoder, **told}, sort_keys=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = _write(creation, path, origin)
    if origin_of(written) != json.loads(origin):
        raise MmrecError(f"{written} does not read back as it was written", mend="look at the disk, and make it again")
    return written


def origin_of(path: Path) -> dict[str, Any]:
    """What a file that `save` wrote tells of itself; it is read whole, so that a damaged one is an error."""
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            picture.load()
            return json.loads(picture.text["mmrec"])  # type: ignore[attr-defined]
    import soundfile

    with soundfile.SoundFile(path) as file:
        file.read()
        return json.loads(file.comment)


def _write(creation: Creation, path: Path, origin: str) -> Path:
    if creation.picture is not None:
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        info.add_text("mmrec", origin)
        path = path.with_suffix(".png")
        creation.picture.save(path, pnginfo=info)
        return path
    assert creation.clip is not None
    path = path.with_suffix(".ogg")
    path.write_bytes(sound_bytes(creation, origin))
    if creation.clip.midi:
        path.with_suffix(".mid").write_bytes(creation.clip.midi)
    return path


def sound_bytes(creation: Creation, comment: str = "made by mmrec (generated)", kind: str = "OGG") -> bytes:
    """A creation's clip as an Ogg Vorbis (or, with ``kind`` "WAV", a wave) file."""
    import soundfile

    assert creation.clip is not None
    buffer = io.BytesIO()
    subtype = "VORBIS" if kind == "OGG" else "PCM_16"
    with soundfile.SoundFile(buffer, "w", creation.clip.rate, 1, format=kind, subtype=subtype) as file:
        file.comment = comment
        for start in range(0, len(creation.clip.samples), 4096):  # libsndfile's Vorbis writer overflows on long writes
            file.write(creation.clip.samples[start : start + 4096])
    return _steady(buffer.getvalue()) if kind == "OGG" else buffer.getvalue()


def _steady(ogg: bytes) -> bytes:
    """The same Ogg stream with a serial number that follows from its content; libsndfile draws one from the clock.

    RFC 3533, section 6: the serial number lies at byte 14 of a page, its checksum at byte 22, its segment table at 27.
    """
    pages, start = [], 0
    while start < len(ogg):
        segments = 27 + start, 27 + start + ogg[start + 26]
        end = segments[1] + sum(ogg[slice(*segments)])
        pages.append(bytearray(ogg[start:end]))
        start = end
    for page in pages:
        page[14:18] = page[22:26] = bytes(4)
    serial = zlib.crc32(b"".join(pages)).to_bytes(4, "little")
    for page in pages:
        page[14:18] = serial
        page[22:26] = _ogg_checksum(page).to_bytes(4, "little")
    return b"".join(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    """CRC-32 with the polynomial of Ethernet, bits not reflected, started from and ended with zero."""
    value = 0
    for byte in page:
        value = (value << 8 & 0xFFFFFFFF) ^ _CRC[value >> 24 ^ byte]
    return value


def _crc_entry(byte: int) -> int:
    value = byte << 24
    for _ in range(8):
        value = value << 1 ^ (0x104C11DB7 if value >> 31 else 0)
    return value


_CRC = [_crc_entry(byte) for byte in range(256)]


class Maker:
    """What makes one person's files; the worker of `generate`. On another machine it opens the workspace there.

    A task names the people whose turn comes ``together``: at the first of them all their dreams are dreamt in one go.
    """

    def __init__(self, recommender: Recommender, options: dict[str, Any]) -> None:
        self.recommender, self.options = recommender, options
        self.dreamt: dict[str, list[Dream]] = {}

    def __reduce__(self) -> tuple[Callable[..., Maker], tuple[Any, ...]]:
        workspace = self.recommender.workspace
        return Maker._open, (str(workspace.root.resolve()), _parts(workspace), self.options)

    @staticmethod
    def _open(root: str, parts: list[str], options: dict[str, Any]) -> Maker:
        from mmrec.recommender import Recommender

        recommender = Recommender.load(root)
        if _parts(recommender.workspace) != parts:
            raise MmrecError(f"{root} was built again while the job was running", mend="run the job again")
        return Maker(recommender, options)

    def __call__(self, task: Task) -> Files:
        from diffusion.guidance import Dials
        from mmrec.recommender import DREAMT

        user, options = task["user"], self.options
        if user not in self.dreamt:
            people = task["together"]
            dreamt = self.recommender.dream_each(
                people,
                seeds=[_seed_of(one, options["seed"]) for one in people],
                n=options["per_user"],
                dials=Dials(**options["weights"]),
                candidates=options["candidates"] or DREAMT,
                **{name: options[name] for name in ("text", "avoid", "steps", "edit", "strength")},
            )
            self.dreamt = dict(zip(people, dreamt, strict=True))
        with tempfile.TemporaryDirectory() as folder:
            _make(self.recommender, user, self.dreamt[user], Path(folder), task["folder"], options)
            return {file.name: file.read_bytes() for file in sorted(Path(folder).iterdir())}


def _parts(workspace: Workspace) -> list[str]:
    """The fingerprints of what a creation is made with."""
    return [
        artifact.fingerprint for stage in ("prior", "decoder", "additions") if (artifact := workspace.current(stage))
    ]


def _make(
    recommender: Recommender, user: str, dreams: list[Dream], folder: Path, name: str, options: dict[str, Any]
) -> None:
    """Write one person's creations and ``manifest.json`` into ``folder``."""
    own_seed = _seed_of(user, options["seed"])
    made = recommender.create(
        dreams, user=user, medium=options["medium"], candidates=options["candidates"], seed=own_seed
    )
    rows = []
    for number, creation in enumerate(made):
        told = {"user": user, "seed": own_seed, "text": options["text"], "avoid": options["avoid"]}
        told |= {"weights": options["weights"], "edit": options["edit"], "strength": options["strength"]}
        file = save(creation, folder / f"{number:03d}", told)
        row = {
            **told,
            "file": f"{name}/{file.name}",
            "number": number,
            "steps": options["steps"],
            "decoder": creation.decoder,
            "embedding": [float(x) for x in creation.dream.vector],
            "novelty": creation.dream.novelty,
            "grounded": [{"item_id": item.item_id, "score": item.score} for item in creation.dream.items],
            "checks": creation.checks,
        }
        rows.append(row)
    write_text(folder / "manifest.json", json.dumps(rows))


def _seed_of(user: str, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{user}".encode()).digest()[:4], "big")


def _folder_name(user: str) -> str:
    """A file name for a user id, whatever it holds: what is safe of it, and a hash where something was not."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in user)[:60]
    return safe if safe == user and user else f"{safe}-{hashlib.sha256(user.encode()).hexdigest()[:8]}"
