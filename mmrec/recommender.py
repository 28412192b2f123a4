"""The facade: one object that recommends, dreams, searches and explains, for Python, the command line and the app."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mmrec.catalog import Catalog
from mmrec.config import Recipe
from mmrec.embedding import MODALITIES, read_media
from mmrec.errors import MmrecError
from mmrec.feedback import Feedback
from mmrec.hybrid import proposals, told
from mmrec.interactions import Histories, load_histories
from mmrec.stages import Embeddings, has_log, load_embeddings, load_vectors
from mmrec.workspace import Workspace

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion.decoders.base import Clip, MediaDecoder
    from diffusion.prior import Dials
    from encoders.base import Encoder
    from retrieval.hybrid import Vote

ALIKE = 0.35
"""Cosine from which one item is given as the reason for another."""
CANDIDATES = 200
"""How many of the retriever's best items the dials of `Recommender.recommend` re-weigh."""


@dataclass(frozen=True)
class Item:
    """An item as it is shown: what it is, why it is here, and how sure we are.

    `score` is comparable within one list only. `code` is its semantic ID, `label` what the items that share its first
    code have in common.
    """

    item_id: str
    title: str
    score: float
    reason: str = ""
    image: Path | None = None
    audio: Path | None = None
    code: tuple[int, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Dream:
    """A seed embedding the prior dreamt.

    `vector` is float32 [D], unit length. `novelty` in [0, 1] says how far from the catalog it lies: the share of
    catalog items that lie nearer to their own nearest neighbour than this dream lies to its. `items` are the real items
    nearest to it, `medium` what it would be made as, going by those.
    """

    vector: np.ndarray
    novelty: float
    items: list[Item]
    medium: Literal["image", "audio"]


@dataclass(frozen=True)
class Imagination:
    """What `Recommender.imagine` gives: the dreams, and the real items that ground them merged into one list."""

    dreams: list[Dream]
    items: list[Item]


@dataclass(frozen=True)
class Creation:
    """A dream made into something to look at or listen to; one of `picture` and `clip` is there.

    `checks` says whether it may be shown: ``copy`` (nearer to a catalog item than catalog items are to each other),
    ``off_taste``, ``nearest`` (cosine to the nearest item) and ``taste`` (score against likes and dislikes).
    """

    dream: Dream
    decoder: str
    picture: Image | None = None
    clip: Clip | None = None
    checks: dict[str, float | bool] = field(default_factory=dict)


class Recommender:
    """A workspace, ready to answer. Parts are loaded when first needed.

    Everybody a method is asked about is described by any mix of ``user`` (an id in the log), ``likes`` and
    ``dislikes`` (item ids; newest last). A new person needs no training.

    The examples below run over a small workspace, opened as ``recommender = Recommender.load("workspaces/demo")``:

    >>> liked = [item.item_id for item in recommender.starters(3)]
    >>> found = recommender.recommend(likes=liked, k=5)
    >>> len(found), any(item.item_id in liked for item in found)
    (5, False)
    >>> imagined = recommender.imagine(likes=liked, text="fruit", n=4, k=6)
    >>> len(imagined.dreams), len(imagined.items)
    (4, 6)
    >>> all(0 <= dream.novelty <= 1 for dream in imagined.dreams)
    True
    >>> picture = next(item for item in imagined.items if item.image)
    >>> recommender.search(image=picture.image, k=1)[0].item_id == picture.item_id
    True
    """

    def __init__(self, workspace: Workspace, recipe: Recipe, catalog: Catalog, vectors: np.ndarray) -> None:
        self.workspace, self.recipe, self.catalog, self.vectors = workspace, recipe, catalog, vectors
        self._opened = workspace.require("vectors").fingerprint

    @staticmethod
    def load(workspace: str | Path) -> Recommender:
        """Open a workspace.

        Raises:
            StaleArtifact: if an artifact is absent, damaged, stale or of another catalog; it names the mend.
        """
        space = Workspace(workspace)
        recipe_file = space.root / "recipe.yaml"
        if not recipe_file.is_file():
            raise MmrecError(f"{space.root} is no workspace", mend=f"mmrec ingest SOURCE -w {space.root}")
        catalog = Catalog.load(space.require("catalog").path)
        vectors = load_vectors(space)
        recommender = Recommender(space, Recipe.load(recipe_file), catalog, vectors)
        if space.current("additions") is not None:
            folder = space.require("additions").path
            for batch in sorted(folder.glob("batch-*")):
                recommender.catalog = recommender.catalog.extend(Catalog.load(batch))
            added = np.load(folder / "vectors.npy", allow_pickle=False)
            recommender.vectors = np.concatenate([vectors, added])
        return recommender

    # -- what is loaded when needed ------------------------------------------------------------------------------------

    def _part(self, stage: str) -> Path:
        """The folder of an artifact, certain to go with the vectors that were opened."""
        path = self.workspace.require(stage).path
        if self.workspace.require("vectors").fingerprint != self._opened:
            raise MmrecError(f"{self.workspace.root} was built again while it was open", mend="open it again")
        return path

    @cached_property
    def histories(self) -> Histories:
        """Everyone in the log with their whole history."""
        if not has_log(self.workspace):
            return Histories([], [], [], [])
        return load_histories(self._part("interactions"), self.catalog.index)

    @cached_property
    def ids(self) -> Any:
        """Semantic IDs of all items, `retrieval.semantic_ids.SemanticIds`."""
        from retrieval.semantic_ids import SemanticIds

        ids = SemanticIds.load(self._part("ids") / "ids")
        if len(self.catalog) > len(ids):
            ids = ids.join(SemanticIds.load(self._part("additions") / "ids"))
        return ids

    @cached_property
    def labels(self) -> dict[str, str]:
        """Code prefix ("12/7") -> what the items under it share."""
        return json.loads((self._part("ids") / "labels.json").read_text(encoding="utf-8"))

    @cached_property
    def retriever(self) -> Any:
        """The sequence model with its beam search, `retrieval.retriever.Retriever`."""
        from retrieval.retriever import Retriever

        self._need_log()
        retriever = Retriever.from_pretrained(self._part("retriever"))
        added = slice(retriever.items, len(self.vectors))
        return (
            retriever.with_items(self.vectors[added], self.ids.codes[added]) if self.vectors[added].size else retriever
        )

    @cached_property
    def prior(self) -> Any:
        """The diffusion prior, `diffusion.prior.Prior`."""
        from diffusion.prior import Prior

        self._need_log()
        return Prior.from_pretrained(self._part("prior"))

    def _hearing(self) -> Any:
        """The retriever, if it was trained to hear queries."""
        if not self.retriever.hears:
            raise MmrecError(
                "the retriever was trained without queries",
                mend=f"set retriever.queries to 1.0 in {self.workspace.root / 'recipe.yaml'}, then mmrec run",
            )
        return self.retriever

    def _need_log(self) -> None:
        if not has_log(self.workspace):
            raise MmrecError(
                f"{self.workspace.root} has no log of who liked what, so nothing could learn what people want; "
                "search works without one",
                mend=f"mmrec ingest SOURCE --log LOG -w {self.workspace.root}, then mmrec run -w {self.workspace.root}",
            )

    @cached_property
    def index(self) -> Any:
        """The FAISS index over item vectors, `retrieval.index.VectorIndex`."""
        from retrieval.index import VectorIndex

        index = VectorIndex.load(self._part("index"))
        return index if len(index) == len(self.vectors) else VectorIndex.build(self.vectors, factory=self.recipe.index)

    @cached_property
    def feedback(self) -> Feedback:
        """What people told the app."""
        return Feedback(self.workspace.root / "feedback.sqlite")

    @cached_property
    def spaces(self) -> dict[str, dict[str, Any]]:
        """Modality -> the encoder that read it and the name of its embedding space."""
        return json.loads((self._part("embeddings") / "spaces.json").read_text(encoding="utf-8"))

    @cached_property
    def _encoders(self) -> dict[str, Encoder]:
        return {}

    @cached_property
    def _decoders(self) -> dict[str, MediaDecoder]:
        return {}

    # -- people --------------------------------------------------------------------------------------------------------

    def history(self, user: str) -> list[tuple[str, float]]:
        """A person's (item id, preference) events, oldest first.

        Raises:
            MmrecError: if the log does not know the person.
        """
        items, preferences = self._taste(user, (), ())
        return [(self.catalog.item_ids[i], float(p)) for i, p in zip(items, preferences, strict=True)]

    def starters(self, n: int = 12, seed: int = 0) -> list[Item]:
        """Items to show somebody new: each much used, each far from those before it.

        Greedy farthest-point selection (Gonzalez 1985) weighted by popularity, so that one answer tells much.
        """
        popularity = self._popularity + 1.0
        popularity = popularity / popularity.max()
        generator = np.random.default_rng(seed)
        chosen = [int(generator.choice(len(popularity), p=popularity / popularity.sum()))]
        distance = 1 - self.vectors @ self.vectors[chosen[0]]
        while len(chosen) < min(n, len(self.catalog)):
            gain = distance * np.sqrt(popularity)
            gain[chosen] = -1
            chosen.append(int(gain.argmax()))
            distance = np.minimum(distance, 1 - self.vectors @ self.vectors[chosen[-1]])
        return [self._item(i, 0.0, "shown to learn your taste") for i in chosen]

    # -- what exists ---------------------------------------------------------------------------------------------------

    def recommend(
        self,
        user: str | None = None,
        *,
        likes: Sequence[str] = (),
        dislikes: Sequence[str] = (),
        k: int = 10,
        mode: Literal["fused", "dense", "codes", "hybrid"] = "fused",
        allowed: Iterable[str] | None = None,
        text: str = "",
        words: float = 1.0,
        avoid: float = 1.0,
        exploration: float = 0.0,
        seed: int = 0,
    ) -> list[Item]:
        """Items of the catalog that this person will want next, best first; none they have met already.

        The retriever proposes, after what it has read of the history and heard in words; with words, dislikes or
        exploration its `CANDIDATES` best (and the items nearest to the
        words) are weighed again: standardised score + ``words`` · standardised similarity to ``text`` - ``avoid`` ·
        standardised similarity to the nearest disliked item + ``exploration`` · Gumbel noise (which draws from the
        softmax of the scores at that temperature; Kool et al. 2019).

        Args:
            mode: the dense head, beam search over semantic IDs, or both fused; or hybrid: what the beam, the neighbours
                of the history and the dreams of the prior propose, merged by calibrated probability. Then each reason
                says who proposed the item, and at which rank.
            allowed: item ids that may be returned (in stock, not yet seen); None means all.
            text: what it should be like, in words.
            exploration: 0 is the best guess, 1 is adventurous.

        Raises:
            MmrecError: for an unknown person or item id.
        """
        items, preferences = self._taste(user, likes, dislikes)
        permitted = self._mask(allowed)
        permitted[items] = False
        plain = not text and not exploration and not (avoid and (preferences < 0).any())
        wanted = items[preferences >= 0]
        wide = k if plain else max(k, CANDIDATES)
        votes: dict[int, list[Vote]] = {}
        if mode == "hybrid":
            found, scores, votes = self._hybrid(items, preferences, wide, permitted, seed)
        else:
            heard = self.steer("text", text)[None] if text and self.retriever.hears else None
            found, scores = self.retriever.recommend([wanted], wide, mode=mode, allowed=permitted, about=heard)
            found, scores = found[0][found[0] >= 0], scores[0][found[0] >= 0]
        if not plain and len(found):
            found, scores = self._reweigh(
                found, scores, permitted, items[preferences < 0], text, words, avoid, exploration, seed
            )
        liked = items[preferences > 0]
        return [
            self._item(int(i), float(s), told(votes[int(i)]) if int(i) in votes else self._because(int(i), liked, text))
            for i, s in zip(found[:k], scores[:k], strict=True)
        ]

    def explain(
        self,
        user: str | None = None,
        *,
        likes: Sequence[str] = (),
        dislikes: Sequence[str] = (),
        k: int = 10,
        seed: int = 0,
    ) -> list[tuple[Item, list[Vote]]]:
        """The items of ``recommend(mode="hybrid")``, each with a record of who proposed it, the weightiest first.

        A `retrieval.hybrid.Vote` holds the source (codes, neighbours or prior), its rank, its own score, and the
        probability of being the next item that the score is worth.
        """
        items, preferences = self._taste(user, likes, dislikes)
        permitted = np.ones(len(self.catalog), bool)
        found, scores, votes = self._hybrid(items, preferences, k, permitted, seed)
        return [
            (self._item(int(i), float(s), told(votes[int(i)])), votes[int(i)])
            for i, s in zip(found, scores, strict=True)
        ]

    def search(
        self,
        text: str = "",
        *,
        image: str | Path | None = None,
        audio: str | Path | None = None,
        k: int = 10,
        by: Literal["neighbours", "codes"] = "neighbours",
    ) -> list[Item]:
        """Items for words, a picture or a sound (exactly one of them), best first.

        Args:
            by: neighbours are the items whose vectors lie nearest. codes: the sequence model hears the query, and
                spells the semantic IDs of items that answer it; it leans to what people use (GENIUS, Zhu et al. 2025).

        Raises:
            MmrecError: if none or several are given, the catalog has no such modality to bridge from, or the model
                was trained without queries.
            encoders.media.MediaError: if the file cannot be read.
        """
        given = [(m, what) for m, what in (("text", text), ("image", image), ("audio", audio)) if what]
        if len(given) != 1:
            raise MmrecError("search takes exactly one of text, image and audio", mend="give one")
        if by not in ("neighbours", "codes"):
            raise MmrecError(f"search by {by!r}", mend="search by neighbours or by codes")
        modality, what = given[0]
        asked = self.steer(modality, what)[None]
        if by == "codes":
            found, scores = self._hearing().recommend([np.empty(0, np.int64)], k, mode="codes", about=asked)
        else:
            scores, found = self.index.search(asked, k)
        how = "answers" if by == "codes" else "near"
        reason = f"{how} “{text}”" if text else f"{how} the {'picture' if image else 'sound'}"
        return [self._item(int(i), float(s), reason) for s, i in zip(scores[0], found[0], strict=True) if i >= 0]

    def describe(self, item_id: str) -> dict[str, Any]:
        """What is known of an item: its words and metadata, what its semantic ID says, and how it sounds.

        ``code`` holds a (code, label) per level; the label is what the items under that prefix share. ``sound`` holds
        tempo, key, timbre and the like, worked out from the file on the spot (about a second).
        """
        row = self._rows([item_id])[0]
        code = [int(c) for c in self.ids.codes[row]]
        prefixes = ["/".join(map(str, code[: level + 1])) for level in range(len(code))]
        told: dict[str, Any] = {
            "title": self.catalog.titles[row],
            "text": self.catalog.texts[row],
            "metadata": self.catalog.metadata[row],
            "code": [(c, self.labels.get(prefix, "")) for c, prefix in zip(code, prefixes, strict=True)],
            "liked_by": int(self._popularity[row]),
        }
        sound = self.catalog.audio_path(row)
        if sound is not None:
            from encoders.audio import explain_audio

            told["sound"] = explain_audio(read_media(str(sound), "audio"))
        return told

    def similar(self, item_id: str, k: int = 10) -> list[Item]:
        """Items nearest to one of the catalog, best first, itself left out."""
        row = self._rows([item_id])[0]
        scores, found = self.index.search(self.vectors[row][None], k + 1)
        reason = f"near {self.catalog.titles[row] or item_id}"
        pairs = zip(scores[0], found[0], strict=True)
        return [self._item(int(i), float(s), reason) for s, i in pairs if i >= 0 and i != row][:k]

    # -- what could exist ----------------------------------------------------------------------------------------------

    def imagine(
        self,
        user: str | None = None,
        *,
        likes: Sequence[str] = (),
        dislikes: Sequence[str] = (),
        text: str = "",
        image: str | Path | None = None,
        audio: str | Path | None = None,
        avoid: str = "",
        n: int = 6,
        k: int = 10,
        steps: int = 8,
        dials: Dials | None = None,
        seed: int = 0,
    ) -> Imagination:
        """Dream vectors of items this person would love, and ground each in the catalog.

        Args:
            text, image, audio: steer the dreams toward words, a picture, a sound; any mix.
            avoid: words to keep away from.
            n: how many dreams.
            k: how many real items to ground them in.
            steps: network evaluations along the path, 1 to 16.
            dials: weight of each condition and the temperature, `diffusion.prior.Dials`.
            seed: same seed, same dreams.
        """
        from diffusion.prior import Dials
        from retrieval.grounding import ground

        items, preferences = self._taste(user, likes, dislikes)
        conditions = self.conditions(items, preferences, text=text, image=image, audio=audio, avoid=avoid)
        seeds = self.prior.sample(conditions, n, steps=steps, dials=dials or Dials(), seed=seed)[0]  # [n, D]
        grounding = ground(seeds, None, self.index, k, exclude=items)
        met = np.isin(np.arange(len(self.catalog)), items)
        liked = items[preferences > 0]
        near_scores, near = self.index.search(seeds, 5, allowed=~met)
        dreams = []
        for row, vector in enumerate(seeds):
            around = [
                self._item(int(i), float(s), "near this dream")
                for s, i in zip(near_scores[row], near[row], strict=True)
                if i >= 0
            ]
            dreams.append(Dream(vector, float(grounding.novelty[row]), around, _medium(around)))
        merged = [
            self._item(int(i), float(s), self._because(int(i), liked, text))
            for i, s in zip(grounding.items, grounding.scores, strict=True)
            if i >= 0
        ]
        return Imagination(dreams, merged)

    def create(
        self,
        dreams: Sequence[Dream],
        *,
        likes: Sequence[str] = (),
        dislikes: Sequence[str] = (),
        medium: Literal["image", "audio"] | None = None,
        seed: int = 0,
    ) -> list[Creation]:
        """Decode dreams into new pictures and music.

        Args:
            likes, dislikes: item ids the checks compare with.
            medium: make all of them pictures, or all music; None lets each dream be what its neighbours are.

        Raises:
            MmrecError: if the catalog lacks the medium, or its decoder is switched off in the recipe.
        """
        from diffusion.fidelity import checks
        from encoders.bridge import among_neighbours

        if not dreams:
            return []
        vectors = np.stack([dream.vector for dream in dreams])
        verdicts = checks(vectors, self.vectors, self.vectors[self._rows(likes)], self.vectors[self._rows(dislikes)])
        made: list[Creation] = []
        for row, dream in enumerate(dreams):
            kind = medium or dream.medium
            decoder = self.decoder(kind)
            output = decoder.decode(among_neighbours(vectors[row : row + 1], *self._seen(kind)), seed=seed, first=row)
            verdict = {name: values[row].item() for name, values in verdicts.items()}
            made.append(
                Creation(
                    replace(dream, medium=kind),
                    decoder.name,
                    picture=output[0] if kind == "image" else None,  # type: ignore[arg-type]
                    clip=output[0] if kind == "audio" else None,  # type: ignore[arg-type]
                    checks=verdict,
                )
            )
        return made

    def decoder(self, medium: Literal["image", "audio"]) -> MediaDecoder:
        """The recipe's decoder that draws, or plays, dreams; the built-in one learnt from this catalog's pictures."""
        if medium not in self._decoders:
            from diffusion.decoders import load_decoder

            if medium not in self.spaces:
                raise MmrecError(f"the catalog has no {medium} to learn from, so it cannot dream any", mend="add some")
            name = getattr(self.recipe.decoders, medium)
            if name is None:
                raise MmrecError(f"decoders.{medium} is null in the recipe", mend=f"name a decoder for {medium} in it")
            if name == "builtin_image":
                name = str(self._part("decoder"))
            self._decoders[medium] = load_decoder(name, self.spaces[medium]["space"])
        return self._decoders[medium]

    # -- pieces that commands and the app share ------------------------------------------------------------------------

    def conditions(
        self,
        items: np.ndarray,
        preferences: np.ndarray,
        *,
        text: str = "",
        image: str | Path | None = None,
        audio: str | Path | None = None,
        avoid: str = "",
    ) -> Any:
        """One person's conditions for the prior: the rated history and the steers, all in the item space."""
        from diffusion.prior import Conditions

        def steered(modality: str, what: str | Path | None) -> np.ndarray | None:
            return self.steer(modality, what)[None] if what else None

        return Conditions(
            history=self.vectors[items][None],
            preferences=preferences[None].astype(np.float32),
            mask=np.ones((1, len(items)), bool),
            text=steered("text", text),
            image=steered("image", image),
            audio=steered("audio", audio),
            avoid=steered("text", avoid),
        )

    def steer(self, modality: str, what: str | Path) -> np.ndarray:
        """Words, or the picture or sound at a path, as a unit vector float32 [D] in the item space.

        Raises:
            MmrecError: if the catalog has nothing of that modality, so that no bridge could be learned.
        """
        if modality not in self.spaces:
            raise MmrecError(
                f"the catalog has no {modality}, so nothing links {modality} to its items",
                mend="steer with " + " or ".join(m for m in MODALITIES if m in self.spaces and m != "tags"),
            )
        if modality not in self._encoders:
            from encoders.registry import load_encoder

            self._encoders[modality] = load_encoder(self.spaces[modality]["encoder"])
        vector = self._encoders[modality].encode([read_media(str(what), modality)], modality)
        item = self._bridge(f"{modality}_to_item").transform(vector)[0]
        return (item / (np.linalg.norm(item) + 1e-9)).astype(np.float32)

    def map(self) -> np.ndarray:
        """Where each item lies on a flat map, float32 [N, 2]; items added later sit on their nearest neighbour."""
        places = np.load(self._part("index") / "map.npy", allow_pickle=False)
        added = self.vectors[len(places) :]
        if len(added):
            nearest = (added @ self.vectors[: len(places)].T).argmax(axis=1)
            places = np.concatenate([places, places[nearest]])
        return places

    @cached_property
    def modalities(self) -> dict[str, np.ndarray]:
        """Modality -> bool [N], which items have it."""
        present = dict(self._embeddings.present)
        more = range(len(next(iter(present.values()))), len(self.catalog))
        has = {"text": self.catalog.describe, "image": self.catalog.image_path, "audio": self.catalog.audio_path}
        return {m: np.concatenate([p, [bool(has[m](i)) for i in more]]).astype(bool) for m, p in present.items()}

    def _seen(self, modality: str) -> tuple[np.ndarray, np.ndarray]:
        """The items that have a modality: their vectors [n, D], and what its encoder made of them [n, d]."""
        rows = np.flatnonzero(self._embeddings.present[modality])
        return self.vectors[rows], self._embeddings.vectors[modality][rows]

    @cached_property
    def _embeddings(self) -> Embeddings:
        return load_embeddings(self.workspace)

    @cached_property
    def _popularity(self) -> np.ndarray:
        counts = np.zeros(len(self.catalog))
        for items, preferences in zip(self.histories.items, self.histories.preferences, strict=True):
            np.add.at(counts, items[preferences > 0], 1)
        return counts

    def _bridge(self, name: str) -> Any:
        from encoders.bridge import Bridge

        if name not in self._bridges:
            folder = self._part("vectors") / "bridges" / name
            if not folder.exists():
                raise MmrecError(f"too few items to learn the bridge {name}", mend="add items that have that modality")
            self._bridges[name] = Bridge.load(folder)
        return self._bridges[name]

    @cached_property
    def _bridges(self) -> dict[str, Any]:
        return {}

    @cached_property
    def _user_rows(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.histories.user_ids)}

    def _taste(self, user: str | None, likes: Sequence[str], dislikes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Items int64 [T] and preferences float32 [T]: the log's history, then what is said now, which overrules it."""
        items, preferences = np.zeros(0, np.int64), np.zeros(0, np.float32)
        if user is not None:
            if user not in self._user_rows:
                raise MmrecError(
                    f"the log has no user {user!r}", mend="give likes instead, or a user of interactions.parquet"
                )
            row = self._user_rows[user]
            items, preferences = self.histories.items[row], self.histories.preferences[row]
        both = set(likes) & set(dislikes)
        if both:
            raise MmrecError(f"{sorted(both)[0]!r} is liked and disliked at once", mend="say one of the two")
        said = self._rows([*dislikes, *likes])
        if len(said):
            keep = ~np.isin(items, said)
            now = np.repeat(np.array([-1.0, 1.0], np.float32), [len(dislikes), len(likes)])
            items, preferences = np.concatenate([items[keep], said]), np.concatenate([preferences[keep], now])
        return items, preferences

    def _rows(self, item_ids: Iterable[str]) -> np.ndarray:
        rows = []
        for item_id in item_ids:
            if item_id not in self.catalog.index:
                raise MmrecError(f"the catalog has no item {item_id!r}", mend="mmrec search WORDS finds the ids")
            rows.append(self.catalog.index[item_id])
        return np.array(rows, np.int64)

    def _mask(self, item_ids: Iterable[str] | None) -> np.ndarray:
        if item_ids is None:
            return np.ones(len(self.catalog), bool)
        mask = np.zeros(len(self.catalog), bool)
        mask[self._rows(item_ids)] = True
        return mask

    def _hybrid(
        self, items: np.ndarray, preferences: np.ndarray, k: int, permitted: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray, dict[int, list[Vote]]]:
        """The k best items with their probabilities, and the votes for each item."""
        from retrieval.hybrid import Hybrid

        hybrid = Hybrid.load(self._part("hybrid"))
        people = ([items], [preferences.astype(np.float32)])
        found = proposals(self.retriever, self.prior, self.index, self.vectors, *people, allowed=permitted, seed=seed)
        rows, scores, votes = hybrid.merge({name: found[name] for name in hybrid.sources}, k)
        there = rows[0] >= 0
        return rows[0][there], scores[0][there], dict(zip(rows[0][there].tolist(), votes[0], strict=True))

    def _reweigh(
        self,
        found: np.ndarray,
        scores: np.ndarray,
        permitted: np.ndarray,
        disliked: np.ndarray,
        text: str,
        words: float,
        avoid: float,
        exploration: float,
        seed: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        vector = self.steer("text", text) if text else None
        if vector is not None:
            _, near = self.index.search(vector[None], CANDIDATES, allowed=permitted)
            extra = np.setdiff1d(near[near >= 0], found)
            found = np.concatenate([found, extra])
            scores = np.concatenate([scores, np.full(len(extra), scores.min(), scores.dtype)])
        total = _standardise(scores)
        if vector is not None:
            total = total + words * _standardise(self.vectors[found] @ vector)
        if len(disliked):
            total = total - avoid * _standardise((self.vectors[found] @ self.vectors[disliked].T).max(axis=1))
        noise = np.random.default_rng(seed).gumbel(size=len(self.catalog))[found]
        total = total + exploration * noise
        order = np.lexsort((found, -total))
        return found[order], total[order]

    def _because(self, row: int, liked: np.ndarray, text: str) -> str:
        said = f"fits “{text}”" if text else ""
        if not len(liked):
            return said or "liked by many"
        likeness = self.vectors[liked] @ self.vectors[row]
        best = int(liked[likeness.argmax()])
        near = "people with a taste like yours went on to it"
        if likeness.max() >= ALIKE:
            near = f"because you liked {self.catalog.titles[best] or self.catalog.item_ids[best]}"
        elif said:
            return said
        return f"{said}, {near}" if said else near

    def _item(self, row: int, score: float, reason: str) -> Item:
        code = tuple(int(c) for c in self.ids.codes[row])
        return Item(
            self.catalog.item_ids[row],
            self.catalog.titles[row],
            score,
            reason,
            self.catalog.image_path(row),
            self.catalog.audio_path(row),
            code,
            self.labels.get(str(code[0]), ""),
        )


def _medium(items: Sequence[Item]) -> Literal["image", "audio"]:
    sounding = sum(item.audio is not None and item.image is None for item in items)
    return "audio" if 2 * sounding > len(items) else "image"


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-6)
