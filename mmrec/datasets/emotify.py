"""Emotify (Aljanaki, Wiering, Veltkamp 2015): 400 real clips of music, liked and disliked by groups of listeners."""

from __future__ import annotations

import os
from pathlib import Path

from mmrec.datasets.files import DatasetFiles, Progress, data_folder, required, write_sources

EMOTIONS = ("amazement", "solemnity", "tenderness", "nostalgia", "calmness", "power", "joyful_activation", "tension",
            "sadness")  # fmt: skip


def emotify(data: Path | None, destination: Path, progress: Progress | None = None) -> DatasetFiles:
    """Clips with their genre and likes per listener group (same age, gender and tongue): there are no listener ids.

    A group that heard a clip more than once counts once, by the majority of its likes and dislikes. The log has no
    times. What listeners felt is metadata and not text, so that the text is no echo of the likes. `data` is the folder
    `emotify` or the one that holds it. Raises `DatasetMissing`.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    folder = data_folder(data, "emotify")
    said = pd.read_parquet(required(folder, "annotations.parquet"))
    felt = said.groupby("track_id")[list(EMOTIONS)].mean()
    clips = pq.ParquetFile(required(folder, "clips.parquet"))
    (destination / "clips").mkdir(parents=True, exist_ok=True)
    items = []
    for batch in clips.iter_batches(batch_size=16, columns=["track_id", "genre", "audio_ogg"]):
        for row in batch.to_pylist():
            name, scratch = f"clips/{row['track_id']}.ogg", destination / "clips" / ".part"
            scratch.write_bytes(row["audio_ogg"])
            os.replace(scratch, destination / name)
            strongest = felt.loc[row["track_id"]].sort_values(ascending=False, kind="stable").index[:3]
            metadata = {"group": row["genre"], "felt": [emotion.replace("_", " ") for emotion in strongest]}
            title = f"{row['genre'].capitalize()} clip {row['track_id']}"
            items.append(
                {"item_id": str(row["track_id"]), "title": title, "text": "", "audio": name, "metadata": metadata}
            )
        if progress:
            progress(len(items), clips.metadata.num_rows)
    votes = (said["liked"] - said["disliked"]).groupby([said["listener_group"], said["track_id"]], sort=False).sum()
    log = votes.clip(-1, 1).reset_index().set_axis(["user", "item", "rating"], axis=1)
    return write_sources(destination, items, log)
