"""Batch jobs: pictures and music for many people into one folder, resumable, the same whatever is killed in between.

A person's output depends on the workspace, the person, the seed and the options only. Each person's files and manifest
part are written under a temporary name and renamed, so a finished person is never made again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mmrec.errors import MmrecError
from mmrec.progress import progress
from mmrec.workspace import fingerprint_of, write_text

if TYPE_CHECKING:
    from mmrec.recommender import Creation, Recommender


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
    seed: int = 0,
) -> Path:
    """Make ``per_user`` pictures or clips for each person.

    Writes ``<user>/<n>.png`` (or ``.ogg``) with their origin in the file's own metadata, and ``manifest.parquet`` with
    one row per file: user, file, seed, text, avoid, steps, decoder, embedding, novelty, grounded items, checks.

    Returns:
        The path of the manifest.

    Raises:
        MmrecError: for an unknown person, or if ``destination`` holds another job.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    users = list(dict.fromkeys(users))
    for user in users:
        recommender.history(user)
    workspace = recommender.workspace
    parts = [
        artifact.fingerprint for stage in ("prior", "decoder", "additions") if (artifact := workspace.current(stage))
    ]
    workspace.require("prior")
    options: dict[str, object] = {
        "medium": medium,
        "per_user": per_user,
        "text": text,
        "avoid": avoid,
        "steps": steps,
        "seed": seed,
    }
    job = fingerprint_of({"parts": parts, "decoder": recommender.decoder(medium).name, **options})
    started = destination / "job.json"
    if started.is_file() and json.loads(started.read_text(encoding="utf-8"))["job"] != job:
        raise MmrecError(
            f"{destination} holds the output of another job", mend="give another --out, or delete that folder"
        )
    write_text(started, json.dumps({"job": job, **options}, indent=1))
    rows: list[dict[str, object]] = []
    with progress(f"creating for {len(users):,} people", unit="people") as tick:
        for done, user in enumerate(users, 1):
            name = _folder_name(user)
            finished = destination / name / "manifest.json"
            if not finished.is_file():
                partial = destination / f".{name}.part"
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
                _make(recommender, user, partial, name, options)
                os.replace(partial, destination / name)
            rows += json.loads(finished.read_text(encoding="utf-8"))
            tick(done, len(users))
    temporary = destination / ".manifest.parquet"
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.replace(destination / "manifest.parquet")
    return destination / "manifest.parquet"


def save(creation: Creation, path: Path, told: dict[str, object]) -> Path:
    """Write one creation with where it came from inside the file; returns the path with its suffix.

    ``told`` goes into the PNG's text chunk or the Ogg's comment, so that the file says by itself that it was generated.
    """
    origin = json.dumps({"made_by": "mmrec (generated)", "decoder": creation.decoder, **told}, sort_keys=True)
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
    return buffer.getvalue()


def _make(recommender: Recommender, user: str, folder: Path, name: str, options: dict[str, object]) -> None:
    medium = options["medium"]
    own_seed = _seed_of(user, int(str(options["seed"])))
    history = recommender.history(user)
    liked = [item for item, preference in history if preference > 0]
    disliked = [item for item, preference in history if preference < 0]
    imagined = recommender.imagine(
        user,
        text=str(options["text"]),
        avoid=str(options["avoid"]),
        n=int(str(options["per_user"])),
        steps=int(str(options["steps"])),
        seed=own_seed,
    )
    made = recommender.create(imagined.dreams, likes=liked, dislikes=disliked, medium=medium, seed=own_seed)  # type: ignore[arg-type]
    rows = []
    for number, creation in enumerate(made):
        told = {"user": user, "seed": own_seed, "text": options["text"], "avoid": options["avoid"]}
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
