"""The recipe: everything one reproducible run is made of, as one YAML file, validated on the way in.

A workspace keeps its own copy as ``recipe.yaml``; every command reads its options there, so that a command typed by
hand and ``mmrec run`` make the same artifacts. The options of the models (``retriever``, ``prior``, ...) are passed to
the config dataclass of the room that owns them, which knows their names and ranges (`mmrec.stages.configure`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from mmrec.errors import MmrecError
from mmrec.workspace import write_text


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Source(_Strict):
    """Where the catalog and the log come from: a named dataset, or files of one's own."""

    dataset: str | None = None
    """A name known to `mmrec.datasets.prepare`; it writes the files below into ``<workspace>/sources``."""
    options: dict[str, Any] = Field(default_factory=dict)
    catalog: Path | None = None
    log: Path | None = None
    media_root: Path | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    log_columns: dict[str, str] = Field(default_factory=dict)
    like_at: float | None = None
    dislike_at: float | None = None
    simulated: bool = False
    """Whether the people of the log are simulated; said wherever they are shown."""


class Encoders(_Strict):
    """One encoder name of `encoders.registry` per modality; a modality whose encoder is null is left out."""

    text: str | None = "minilm"
    tags: str | None = "hashed_tags"
    image: str | None = "efficientnet_lite0"
    audio: str | None = "musicnn"


class Decoders(_Strict):
    """What draws and plays the dreamt vectors: the name of a decoder, or a folder where one was saved."""

    image: str | None = "builtin_image"
    audio: str | None = "builtin_music"


class Evaluation(_Strict):
    """What `mmrec evaluate` measures."""

    protocols: list[Literal["strict", "refit"]] = ["strict"]
    """strict: learn from the training part. refit: choose as in strict, then learn again from all but the test part."""
    recommenders: list[str] | None = None
    """retriever, content_only, prior, regression, names of baselines; null means those quick enough for every table."""
    baselines: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Options of baselines by name; what is not named here has its default."""
    one_seed: list[str] = []
    """Recommenders that are measured with the first seed only."""
    seeds: list[NonNegativeInt] = Field(default=[0], min_length=1)
    ks: list[PositiveInt] = Field(default=[10, 20], min_length=1)
    people: PositiveInt | None = None
    """At most so many people are asked (drawn by seed); null means everyone."""
    claims: list[str] | None = None
    """Baselines that the report compares ours with in words, with a paired test; null: popularity, item_knn and
    mean_history, those of them that are measured."""


class Recipe(_Strict):
    """A whole run. Unknown names are errors, so that a typing slip cannot pass silently."""

    name: str = "catalog"
    seed: int = 0
    source: Source = Field(default_factory=Source)
    split: Literal["leave_one_out", "by_time"] = "leave_one_out"
    encoders: Encoders = Field(default_factory=Encoders)
    fusion: dict[str, Any] = Field(default_factory=dict)
    tokenizer: dict[str, Any] = Field(default_factory=lambda: {"name": "residual_kmeans"})
    retriever: dict[str, Any] = Field(default_factory=dict)
    prior: dict[str, Any] | None = Field(default_factory=dict)
    """null: no prior is trained; there are recommendations but no dreams."""
    decoders: Decoders = Field(default_factory=Decoders)
    decoder_training: dict[str, Any] = Field(default_factory=dict)
    index: str = "Flat"
    evaluation: Evaluation = Field(default_factory=Evaluation)

    @staticmethod
    def load(path: Path) -> Recipe:
        """Read a recipe; relative paths in it are relative to the file's folder.

        Raises:
            MmrecError: if the file is absent, no YAML, or holds an unknown name or a value of the wrong type.
        """
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise MmrecError(f"cannot read the recipe {path}: {error}", mend="mmrec run RECIPE.yaml") from error
        try:
            recipe = Recipe.model_validate(raw)
        except ValidationError as error:
            raise MmrecError(
                f"{path}: {in_words(error)}", mend="see docs/recipes.md for the names a recipe may use"
            ) from error
        source = recipe.source
        for name in ("catalog", "log", "media_root"):
            value: Path | None = getattr(source, name)
            if value is not None and not value.is_absolute():
                setattr(source, name, (path.parent / value).resolve())
        return recipe

    def save(self, path: Path) -> None:
        """Write the recipe atomically."""
        text = yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)
        write_text(path, text)


def in_words(error: ValidationError) -> str:
    """What is wrong with which option, in one line."""
    return "; ".join(": ".join(filter(None, [".".join(map(str, e["loc"])), e["msg"]])) for e in error.errors())
