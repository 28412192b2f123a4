"""The facade: one object that recommends, dreams, searches and explains, for Python, the command line and the app."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
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
from mmrec.sources import IMAGE_SUFFIXES
from mmrec.stages import BRIDGED, Embeddings, has_log, load_embeddings, load_vectors
from mmrec.workspace import Workspace

if TYPE_CHECKING:
    from PIL.Image import Image

    from diffusion.decoders.base import Clip, MediaDecoder
    from diffusion.prior import Dials
    from diffusion.verifier import Verifier
    from encoders.base import Encoder
    from retrieval.hybrid import Vote

log = logging.getLogger(__name__)

ALIKE = 0.35
"""Cosine from which one item is given as the reason for another."""
DREAMT = 4
"""Dreams dreamt for each that is kept."""
TOGETHER = 4
"""People whose dreams `Recommender.dream_each` dreams in one go."""
MADE = {"image": 4, "audio": 2}
"""Pictures, or clips, made for each that is shown; a clip takes several times as long as a picture."""
MOST_PICTURES = 50
"""Of a person's own that are read, the last by name."""
VOTERS = 64
"""Dreams that vote on which real items ground them, where fewer are asked for."""
WORDS_FOR_THE_GAP = 256
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

    `checks` says whether it may be shown. Of the dream: ``nearest`` (row of the nearest item) and ``nearest_cosine``,
    ``taste`` (the verifier's probability that the person likes what it stands on) and ``off_taste`` (below 1/2). Of
    what was made, seen again through the encoder of the catalog: ``likeness`` (cosine to what was asked for),
    ``made_nearest_cosine``, and ``made_taste`` (as taste). Of both: ``copy``, nearer to a catalog item than catalog
    items are to each other. ``presentable``: something is to be seen or heard. ``candidates``: the one shown is the
    best of so many.
    """

    dream: Dream
    decoder: str
    picture: Image | None = None
    clip: Clip | None = None
    checks: dict[str, float | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranked:
    """A creation with what it was made by and from, and `score`: the probability that the person likes it."""

    decoder: str
    prompt: str
    score: float
    creation: Creation


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
    def worth(self) -> Any:
        """What the log says of items beside what is dreamt, `retrieval.worth.Worth`."""
        from retrieval.worth import Worth

        return Worth(self.histories.items, self.histories.preferences, len(self.catalog))

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
    def _decoders(self) -> dict[tuple[str, str], MediaDecoder]:
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
        pictures: str | Path | Sequence[str | Path] = (),
        vector: np.ndarray | None = None,
        refused: Sequence[str] = (),
        n: int = 6,
        k: int = 10,
        steps: int = 8,
        dials: Dials | None = None,
        edit: str | None = None,
        strength: float = 0.3,
        candidates: int = DREAMT,
        seed: int = 0,
    ) -> Imagination:
        """Dream vectors of items this person would love, and ground each in the catalog.

        Where nothing steers the dreams, what the log says of items counts in grounding, too (`retrieval.worth`).

        Args:
            text, image, audio: steer the dreams toward words, a picture, a sound; any mix.
            avoid: words to keep away from.
            pictures: a folder of the person's own pictures (or their paths), each read as something liked: a visual
                history may be all that is known of somebody (VisualLens, Zhang et al. 2024).
            vector: float32 [D] in the item space that stands for the person, read as something liked.
            refused: item ids that an earlier round showed in vain; they are hidden and count as disliked for the
                dreams, so that the next round learns from them (Ada-Retrieval, Li et al. 2024). What the log says is
                asked without them, which made better rounds (`benchmarks/prior/rounds.py`).
            n: how many dreams.
            k: how many real items to ground them in.
            steps: network evaluations along the path, 1 to 16.
            dials: weight of each condition, the interval they act in, and exploration, `diffusion.prior.Dials`.
            edit: an item to change instead of dreaming from nothing.
            strength: how far an edit may go, from 0 (the item as it is) to 1 (a dream that has forgotten it).
            candidates: so many are dreamt for each that is kept; copies of items and what the verifier finds off the
                person's taste are refused while there are others. Who asks for something or edits is not
                second-guessed: only copies are refused then, and of edits nothing.
            seed: same seed, same dreams.
        """
        from diffusion.prior import POOL, Dials
        from retrieval.grounding import ground, ground_by_votes

        items, preferences = self._taste(user, likes, [*dislikes, *refused])
        more = self._of_pictures(pictures) + ([] if vector is None else [np.asarray(vector, np.float32)])
        conditions = self.conditions(items, preferences, more, text=text, image=image, audio=audio, avoid=avoid)
        votes = not more and not (text or image or audio or edit) and has_log(self.workspace)
        dream = partial(
            self.prior.sample,
            conditions,
            steps=steps,
            dials=dials or Dials(),
            seed=seed,
            edit=self._edited(edit),
            strength=strength,
        )
        seeds = dream(n * candidates)[0]  # [S, D]
        wilful = bool(text or image or audio)
        kept = self._kept(seeds, items, preferences, n, wilful=wilful, edited=edit is not None)
        if votes:
            known, liking = self._taste(user, likes, dislikes)  # without what was refused
            worth = self.worth.of([known], [liking])[0]
            grounding = ground_by_votes(dream(VOTERS, pool=POOL)[0], worth, self.index, k, exclude=items)
        else:
            grounding = ground(kept, None, self.index, k, exclude=items)
        liked = items[preferences > 0]
        merged = [
            self._item(int(i), float(s), self._because(int(i), liked, text))
            for i, s in zip(grounding.items, grounding.scores, strict=True)
            if i >= 0
        ]
        return Imagination(self._dreams(kept, items), merged)

    def dream_each(
        self,
        users: Sequence[str],
        *,
        seeds: Sequence[int],
        text: str = "",
        avoid: str = "",
        n: int = 6,
        steps: int = 8,
        dials: Dials | None = None,
        edit: str | None = None,
        strength: float = 0.3,
        candidates: int = DREAMT,
    ) -> list[list[Dream]]:
        """The dreams `imagine` gives, for many people of the log at once, each with a seed of their own.

        Nobody's dreams depend on who else is asked, to the bit. The last bits of a product depend on the size of what
        is multiplied, so always `TOGETHER` people are dreamt for at once (the last of them several times, if need be),
        with histories of one length, known by the same kinds of events.
        """
        from diffusion.prior import Conditions, Dials

        length = self.prior.network.config.max_history
        histories = [tuple(part[-length:] for part in self._taste(user, (), ())) for user in users]
        steers = {name: self.steer("text", words) for name, words in (("text", text), ("avoid", avoid)) if words}
        groups: dict[tuple[bool, bool], list[int]] = {}
        for row, (_, preferences) in enumerate(histories):
            groups.setdefault((bool((preferences >= 0).any()), bool((preferences < 0).any())), []).append(row)
        dreams: dict[int, list[Dream]] = {}
        blocks = [rows[at : at + TOGETHER] for rows in groups.values() for at in range(0, len(rows), TOGETHER)]
        for rows in blocks:
            several = rows + rows[-1:] * (TOGETHER - len(rows))
            same = {name: np.repeat(vector[None], len(several), axis=0) for name, vector in steers.items()}
            conditions = Conditions.from_histories(
                [histories[row][0] for row in several],
                [histories[row][1] for row in several],
                self.vectors,
                max_history=length,
                text=same.get("text"),
                avoid=same.get("avoid"),
            ).padded(length)
            dreamt = self.prior.sample(
                conditions,
                n * candidates,
                steps=steps,
                dials=dials or Dials(),
                seed=[seeds[row] for row in several],
                edit=self._edited(edit),
                strength=strength,
            )  # [B, n * candidates, D]
            for row, vectors in zip(rows, dreamt, strict=False):
                items, preferences = histories[row]
                kept = self._kept(vectors, items, preferences, n, wilful=bool(text), edited=edit is not None)
                dreams[row] = self._dreams(kept, items)
        return [dreams[row] for row in range(len(users))]

    def _edited(self, item_id: str | None) -> np.ndarray | None:
        return self.vectors[self._rows([item_id])[0]] if item_id is not None else None

    def _kept(
        self, seeds: np.ndarray, items: np.ndarray, preferences: np.ndarray, n: int, *, wilful: bool, edited: bool
    ) -> np.ndarray:
        """n of the seeds [S, D]; who asks for something (``wilful``) or edits is not second-guessed. -> [n, D]"""
        from diffusion.fidelity import keep

        verdicts = self._verdicts(seeds, items, preferences)
        refused = verdicts["copy"] if wilful else verdicts["copy"] | verdicts["off_taste"]
        return seeds[keep(refused & (not edited), verdicts["taste"], n)]

    def _dreams(self, vectors: np.ndarray, items: np.ndarray) -> list[Dream]:
        """Vectors [n, D] dreamt for somebody who has met `items`, each with the unmet items nearest to it."""
        from retrieval.grounding import novelty

        new = novelty(vectors, self.index)
        met = np.isin(np.arange(len(self.catalog)), items)
        scores, near = self.index.search(vectors, 5, allowed=~met)
        dreams = []
        for row, vector in enumerate(vectors):
            around = [
                self._item(int(i), float(s), "near this dream")
                for s, i in zip(scores[row], near[row], strict=True)
                if i >= 0
            ]
            dreams.append(Dream(vector, float(new[row]), around, _medium(around)))
        return dreams

    def create(
        self,
        dreams: Sequence[Dream],
        *,
        user: str | None = None,
        likes: Sequence[str] = (),
        dislikes: Sequence[str] = (),
        medium: Literal["image", "audio"] | None = None,
        decoder: str | None = None,
        candidates: int | None = None,
        references: int = 4,
        seed: int = 0,
    ) -> list[Creation]:
        """Decode dreams into new pictures and music, and check what was made.

        Args:
            user, likes, dislikes: whose taste the checks compare with.
            medium: make all of them pictures, or all music; None lets each dream be what its neighbours are.
            decoder: a name or a folder, instead of the recipe's.
            candidates: so many are made of each dream (None: `MADE`); shown is the one that looks, or sounds, most like
                the dream to the catalog's own encoder, copies of catalog items refused while there are others.
            references: so many real items next to the dream guide the decoder.

        Raises:
            MmrecError: if the catalog lacks the medium, or its decoder is switched off in the recipe.
        """
        if not dreams:
            return []
        rated, preferences = self._taste(user, likes, dislikes)
        verdicts = self._verdicts(np.stack([dream.vector for dream in dreams]), rated, preferences)
        made: list[Creation] = []
        for row, dream in enumerate(dreams):
            kind = medium or dream.medium
            drawer = self.decoder(kind, decoder)
            output, told = self._best_of(kind, drawer, dream.vector, candidates or MADE[kind], references, seed, row)
            seen_as = told.pop("item")
            taste = self._verdicts(seen_as[None], rated, preferences)["taste"]
            verdict = {name: values[row].item() for name, values in verdicts.items()}
            verdict |= told | {"copy": verdict["copy"] or told["copy"], "made_taste": taste[0].item()}
            made.append(
                Creation(
                    replace(dream, medium=kind),
                    drawer.name,
                    picture=output if kind == "image" else None,
                    clip=output if kind == "audio" else None,
                    checks=verdict,
                )
            )
        return made

    def rank(
        self,
        user: str | None = None,
        *,
        likes: Sequence[str] = (),
        dislikes: Sequence[str] = (),
        prompts: Sequence[str] = ("",),
        decoders: Sequence[str | None] = (None,),
        medium: Literal["image", "audio"] = "image",
        n: int = 2,
        seed: int = 0,
    ) -> list[Ranked]:
        """What every decoder makes of every prompt for one person, the best first (GEMRec, Guo et al. 2024).

        The score is what the verifier says to what was made, seen again through the catalog's encoder: a decoder that
        does not draw what was dreamt is told apart from one that does.

        Args:
            prompts: words to steer by; "" lets the taste alone speak.
            decoders: names or folders; None is the recipe's. All must read the catalog's embedding space.
            n: how many dreams for each prompt; every decoder gets the same.
        """
        who: dict[str, Any] = {"user": user, "likes": likes, "dislikes": dislikes}
        ranked = []
        for prompt in prompts:
            dreams = self.imagine(**who, text=prompt, n=n, seed=seed).dreams
            for name in decoders:
                for creation in self.create(dreams, **who, medium=medium, decoder=name, seed=seed):
                    told = name or getattr(self.recipe.decoders, medium)
                    ranked.append(Ranked(told, prompt, float(creation.checks["made_taste"]), creation))
        return sorted(ranked, key=lambda one: -one.score)

    def decoder(self, medium: Literal["image", "audio"], name: str | None = None) -> MediaDecoder:
        """What draws, or plays, dreams: the recipe's decoder, or another by ``name`` or folder.

        The built-in picture decoder is the one learnt from this catalog's pictures.
        """
        if medium not in self.spaces:
            raise MmrecError(f"the catalog has no {medium} to learn from, so it cannot dream any", mend="add some")
        name = name or getattr(self.recipe.decoders, medium)
        if name is None:
            raise MmrecError(f"decoders.{medium} is null in the recipe", mend=f"name a decoder for {medium} in it")
        if (medium, name) not in self._decoders:
            from diffusion.decoders import load_decoder

            where = str(self._part("decoder")) if name == "builtin_image" else name
            self._decoders[medium, name] = load_decoder(where, self.spaces[medium]["space"])
        return self._decoders[medium, name]

    def _best_of(
        self,
        medium: Literal["image", "audio"],
        decoder: MediaDecoder,
        vector: np.ndarray,
        candidates: int,
        references: int,
        seed: int,
        row: int,
    ) -> tuple[Any, dict[str, Any]]:
        """The best of some candidates for one dream, and what is told of it; "item" is where it lies as an item.

        (Where too few items have the medium to learn that from, "item" is the dream itself.)
        """
        from diffusion.fidelity import choose, presentable
        from encoders.bridge import among_neighbours

        vectors, embeddings = self._seen(medium)
        wanted = among_neighbours(vector[None], vectors, embeddings)  # [1, d]
        around = np.argsort(-(vectors @ vector), kind="stable")[:references]
        output = decoder.decode(
            np.repeat(wanted, candidates, axis=0),
            references=np.repeat(embeddings[around][None], candidates, axis=0) if references else None,
            seed=seed,
            first=row * candidates,
        )
        made = self._encoder(medium).encode([_as_read(one) for one in output], medium)  # [candidates, d]
        seen, threshold, mean = self._centred(medium)
        fit = np.array([presentable(one) for one in output])
        best, likeness, cosine = choose(_unit(made - mean), _unit(wanted - mean)[0], seen, threshold, fit)
        told = {
            "likeness": likeness[best].item(),
            "made_nearest_cosine": cosine[best].item(),
            "copy": bool(cosine[best] > threshold),
            "presentable": bool(fit[best]),
            "candidates": candidates,
            "item": self._in_item_space(medium, made[best][None]) if len(vectors) >= BRIDGED else vector,
        }
        return output[best], told

    # -- pieces that commands and the app share ------------------------------------------------------------------------

    def conditions(
        self,
        items: np.ndarray,
        preferences: np.ndarray,
        more: Sequence[np.ndarray] = (),
        *,
        text: str = "",
        image: str | Path | None = None,
        audio: str | Path | None = None,
        avoid: str = "",
    ) -> Any:
        """One person's conditions for the prior: the rated history and the steers, all in the item space.

        `more` are vectors [D] beside the catalog's that are liked; they come before the history.
        """
        from diffusion.prior import Conditions

        def steered(modality: str, what: str | Path | None) -> np.ndarray | None:
            return self.steer(modality, what)[None] if what else None

        for vector in more:
            if vector.shape != (self.vectors.shape[1],):
                raise MmrecError(
                    f"a vector for a person is {list(vector.shape)}, the item space {self.vectors.shape[1]}",
                    mend="give one of the item space, as the rows of vectors/vectors.npy in the workspace",
                )
        liked = [vector[None] / np.linalg.norm(vector) for vector in more]
        history = np.concatenate([*liked, self.vectors[items]]).astype(np.float32)
        return Conditions(
            history=history[None],
            preferences=np.concatenate([np.ones(len(liked)), preferences])[None].astype(np.float32),
            mask=np.ones((1, len(history)), bool),
            text=steered("text", text),
            image=steered("image", image),
            audio=steered("audio", audio),
            avoid=steered("text", avoid),
        )

    def steer(self, modality: str, what: str | Path) -> np.ndarray:
        """Words, or the picture or sound at a path, as a unit vector float32 [D] in the item space.

        A catalog without words is steered by words through an encoder of its pictures or sounds that reads words, too
        (CLIP, CLAP), the gap between the two closed.

        Raises:
            MmrecError: if the catalog has nothing of that modality, so that no bridge could be learned.
        """
        if modality == "text" and "text" not in self.spaces:
            for medium in ("image", "audio"):
                if medium in self.spaces and "text" in self._encoder(medium).modalities:
                    words = self._encoder(medium).encode([read_media(str(what), "text")], "text")
                    return self._in_item_space(medium, self._gap(medium).to_media(words))
        if modality not in self.spaces:
            raise MmrecError(
                f"the catalog has no {modality}, so nothing links {modality} to its items",
                mend="steer with " + " or ".join(m for m in MODALITIES if m in self.spaces and m != "tags"),
            )
        return self._in_item_space(
            modality, self._encoder(modality).encode([read_media(str(what), modality)], modality)
        )

    def _encoder(self, modality: str) -> Encoder:
        if modality not in self._encoders:
            from encoders.registry import load_encoder

            self._encoders[modality] = load_encoder(self.spaces[modality]["encoder"])
        return self._encoders[modality]

    def _in_item_space(self, modality: str, vector: np.ndarray) -> np.ndarray:
        item = self._bridge(f"{modality}_to_item").transform(vector)[0]
        return (item / (np.linalg.norm(item) + 1e-9)).astype(np.float32)

    def _gap(self, medium: str) -> Any:
        """Between the titles and the pictures (or sounds) of the catalog, in the space of the medium's encoder."""
        from encoders.gap import ModalityGap

        if medium not in self._gaps:
            words = [self.catalog.titles[row] or self.catalog.item_ids[row] for row in range(len(self.catalog))]
            few = np.random.default_rng(0).permutation(len(words))[:WORDS_FOR_THE_GAP]
            told = self._encoder(medium).encode([words[row] for row in few], "text")
            self._gaps[medium] = ModalityGap(told, self._seen(medium)[1])
        return self._gaps[medium]

    @cached_property
    def _gaps(self) -> dict[str, Any]:
        return {}

    def _of_pictures(self, given: str | Path | Sequence[str | Path]) -> list[np.ndarray]:
        """Vectors in the item space of a folder's pictures; those that cannot be read are left out, with a warning."""
        from encoders.media import MediaError

        vectors = []
        paths = _pictures(given)
        for path in paths:
            try:
                vectors.append(self.steer("image", path))
            except MediaError as error:
                log.warning("left out: %s", error)
        if paths and not vectors:
            raise MmrecError(f"none of {len(paths)} pictures can be read", mend="give pictures that open elsewhere")
        return vectors

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

    def _centred(self, modality: str) -> tuple[np.ndarray, float, np.ndarray]:
        """The catalog in the space of one modality: unit rows around the mean, `copy_threshold` of them, the mean."""
        if modality not in self._centres:
            from diffusion.fidelity import copy_threshold

            embeddings = self._seen(modality)[1]
            mean = embeddings.mean(axis=0)
            rows = _unit(embeddings - mean)
            self._centres[modality] = rows, copy_threshold(rows), mean
        return self._centres[modality]

    @cached_property
    def _centres(self) -> dict[str, tuple[np.ndarray, float, np.ndarray]]:
        return {}

    @cached_property
    def _verifier(self) -> Verifier:
        from diffusion.verifier import FILE, Verifier

        folder = self._part("prior")
        if not (folder / FILE).is_file():
            raise MmrecError("this prior was trained without a verifier", mend=self.workspace.mend("prior"))
        return Verifier.load(folder)

    @cached_property
    def _threshold(self) -> float:
        from diffusion.fidelity import copy_threshold

        return copy_threshold(self.vectors)

    def _verdicts(self, vectors: np.ndarray, items: np.ndarray, preferences: np.ndarray) -> dict[str, np.ndarray]:
        """`diffusion.fidelity.checks` of vectors [S, D] for a person with this history."""
        from diffusion.fidelity import checks

        return checks(vectors, self.vectors, items, preferences, self._verifier, self._threshold)

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


def _pictures(given: str | Path | Sequence[str | Path]) -> list[Path]:
    """The pictures of a folder, by name, or the paths given; as many of the last as the prior reads."""
    if not isinstance(given, str | Path):
        return [Path(path) for path in given][-MOST_PICTURES:]
    folder = Path(given)
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not found:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        raise MmrecError(f"{folder} is no folder with pictures ({kinds}) in it", mend="give another folder")
    return found[-MOST_PICTURES:]


def _medium(items: Sequence[Item]) -> Literal["image", "audio"]:
    sounding = sum(item.audio is not None and item.image is None for item in items)
    return "audio" if 2 * sounding > len(items) else "image"


def _as_read(made: Image | Clip) -> Any:
    """A picture or clip as the encoders read it."""
    from diffusion.decoders.base import Clip
    from encoders.media import Waveform

    return Waveform(made.samples, made.rate) if isinstance(made, Clip) else made


def _unit(x: np.ndarray) -> np.ndarray:
    return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-9)


def _standardise(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / (values.std() + 1e-6)
