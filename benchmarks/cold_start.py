"""New items: hold a share of the items out of all training, add them as `mmrec add` does, and ask for them.

The setting of LIGER (Yang et al. 2024, "Unifying Generative and Dense Retrieval for Sequential Recommendation", section
5): the items held out are in no training history, neither the fusion nor the tokenizer nor the sequence model sees
them. Then each gets its vector from what it is, its code from the vector, and stands in the catalog among all others.
Asked is the strict test: recall over people whose next item is new, and over everybody else (the price), beside the
model that was trained on all items.

Run `python -m benchmarks.cold_start recipes/amazon_beauty.yaml` in a checkout; it resumes where it was killed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.timing import record
from mmrec import results
from mmrec.config import Recipe
from mmrec.stages import configure, load_embeddings, load_split, used_together, validation_of, wanted_only
from mmrec.workspace import Workspace

if TYPE_CHECKING:
    from retrieval.retriever import Mode, Retriever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--workspace", type=Path, help="where `mmrec run` built it; default: workspaces/<recipe>")
    parser.add_argument("--share", type=float, default=0.05, help="of the items, held out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, default=results.DIRECTORY)
    options = parser.parse_args()
    recipe = Recipe.load(options.recipe)
    space = Workspace(options.workspace or Path("workspaces") / recipe.name)

    from retrieval.retriever import Retriever

    split = load_split(space, recipe)[2]
    n = len(load_embeddings(space).present["text"])
    cold = np.zeros(n, bool)
    cold[np.random.default_rng(options.seed).choice(n, round(options.share * n), replace=False)] = True
    held_out, order = train_without(space, recipe, cold, options.seed)

    place = np.argsort(order)  # the held-out catalog is numbered warm items first
    targets = np.array([target[0] for target in split.test.targets])
    known = Retriever.from_pretrained(space.require("retriever").path)
    dataset = f"{recipe.name}, {options.share:.0%} of the items new"
    command = f"python -m benchmarks.cold_start {options.recipe}"
    records = []
    for name, retriever, number in (("held out", held_out, place), ("trained on all", known, np.arange(n))):
        for mode in ("dense", "codes", "fused"):
            items = answers(retriever, [number[h] for h in split.test.histories], mode)
            hit = items == number[targets][:, None]
            for who, asked in (("new items", cold[targets]), ("the others", ~cold[targets])):
                recall = float(hit[asked].any(axis=1).mean())
                print(f"{name}, {mode}: recall@10 over {who}: {recall:.4f} of {asked.sum():,}", flush=True)
                model, metric = f"retriever ({mode}), {name}", f"recall@10 over {who}"
                records.append(record(dataset, "strict-test", model, metric, [recall], [options.seed], command))
    print(results.write_records(f"cold_start_{recipe.name}", records, options.record))


def train_without(space: Workspace, recipe: Recipe, cold: np.ndarray, seed: int) -> tuple[Retriever, np.ndarray]:
    """A retriever that never met the `cold` items bool [N] and got them as new ones; and the catalog item of each of
    its numbers, int64 [N]: the warm ones in order, then the cold ones."""
    from encoders.fusion import Fusion, FusionConfig
    from retrieval.model import RetrieverConfig
    from retrieval.retriever import Retriever
    from retrieval.semantic_ids import assign_unique, make_tokenizer
    from retrieval.training import train_retriever

    order = np.concatenate([np.flatnonzero(~cold), np.flatnonzero(cold)])
    warm = int((~cold).sum())
    number = np.argsort(order)
    folder = space.root / ".measured" / f"cold-{seed}-{cold.mean():.3f}"
    split = load_split(space, recipe)[2]
    data = load_embeddings(space)
    media = {modality: vectors[order] for modality, vectors in data.vectors.items()}
    present = {modality: there[order] for modality, there in data.present.items()}

    def only_warm(histories: list[np.ndarray]) -> list[np.ndarray]:
        return [number[history[~cold[history]]] for history in histories]

    def first(x: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {modality: rows[:warm] for modality, rows in x.items()}

    train = only_warm(wanted_only(split.train.items, split.train.preferences))
    fusion_config = configure(FusionConfig, recipe.fusion, "fusion")
    fusion = Fusion.fit(first(media), first(present), used_together(train), fusion_config, recipe.seed)
    vectors = fusion.transform(media, present)
    choice = dict(recipe.tokenizer)
    tokenizer = make_tokenizer(choice.pop("name"), **choice)
    tokenizer.fit(vectors[:warm], seed=recipe.seed)
    ids = assign_unique(tokenizer.encode(vectors[:warm]), vectors[:warm], tokenizer, seed=recipe.seed)
    new = assign_unique(tokenizer.encode(vectors[warm:]), vectors[warm:], tokenizer, taken=ids)
    if not (folder / "config.json").is_file():
        histories, targets = validation_of(split)
        asked = ~cold[targets]
        histories = only_warm([history for history, keep in zip(histories, asked, strict=True) if keep])
        train_retriever(
            train,
            vectors[:warm],
            ids,
            configure(RetrieverConfig, recipe.retriever, "retriever"),
            validation=(histories, number[targets[asked]]),
            seed=seed,
            checkpoint_dir=folder / "checkpoints",
            progress=lambda done, total: print(f"epoch {done} of {total}", flush=True),
        ).save_pretrained(folder)
    return Retriever.from_pretrained(folder).with_items(vectors[warm:], new.codes), order


def answers(retriever: Retriever, histories: list[np.ndarray], mode: Mode) -> np.ndarray:
    """The ten items each person is shown, int64 [B, 10]."""
    parts = [retriever.recommend(histories[at : at + 512], 10, mode=mode)[0] for at in range(0, len(histories), 512)]
    return np.concatenate(parts)


if __name__ == "__main__":
    main()
