"""How fast are semantic IDs decoded? Users per second on one thread, beam 50, side by side in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.decoding --record docs/results
    python -m benchmarks.decoding --device cuda --record docs/results

T5-shaped weights (TIGER's sizes: d = 128, 4 + 4 layers, 12,000 items, 4 x 256 codes; histories of 20 items, the most
TIGER reads, and of 8, about the mean of Amazon Beauty):
`generate(num_beams=50, prefix_allowed_tokens_fn=...)` of transformers, at the batch size that suits it best, against
our exact search on the same weights, and against the encoder alone, which no decoder can undercut. Before anything is
timed the lists must be the same in every place, with weights as drawn and with logits made peaky; places may be swapped
only where two scores are closer than single precision tells apart. The score is the sum of log-softmaxes over the whole
vocabulary, so transformers is asked for length_penalty=0 and for early_stopping="never", its own canonical beam search.

Our default model on the same catalog: its encoder alone, against encoder and search over codes; and what lists of the
dense head, and of both fused, cost. On a GPU the clock alone counts, more people are asked at once, and both searches
run under a switch that makes every wait for the device an error.
Weights are random: what is computed does not depend on what was learned.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import Cost, in_turns, record
from mmrec import results
from retrieval.baselines.t5 import T5Speller, people_at_once
from retrieval.baselines.tiger import FIRST_CODE, PERSON, TigerConfig, t5_of
from retrieval.decode import beam_search
from retrieval.model import RetrieverConfig, SequenceModel
from retrieval.retriever import Retriever
from retrieval.trie import Trie

ITEMS, SIZES, BEAM = 12_000, (256,) * 4, 50
HISTORIES_OF_T5 = (20, 8)
OFFSETS = tuple(FIRST_CODE + 256 * level for level in range(4))
ROUNDS, SEEDS = 3, (0, 1, 2)
USERS = {"cpu": 32, "cuda": 256}
BATCHES_OF_GENERATE = {"cpu": (1, 2, 4, 8), "cuda": (4, 16, 64)}
SINGLE_PRECISION = 1e-4  # of the sum of four log-softmaxes
COMMAND = {
    "cpu": "OMP_NUM_THREADS=1 python -m benchmarks.decoding --record docs/results",
    "cuda": "python -m benchmarks.decoding --device cuda --record docs/results",
}
Search = Callable[[torch.Tensor], tuple[np.ndarray, np.ndarray]]


def catalog(items: int, seed: int, sizes: tuple[int, ...] = SIZES) -> np.ndarray:
    """Codes int64 [items, L] in which, as in real ones, first codes differ in how often they are used."""
    random = np.random.default_rng(seed)
    often = random.dirichlet(np.full(sizes[0], 2.0))
    codes = np.empty((0, len(sizes)), dtype=np.int64)
    while len(codes) < items:
        more = [random.choice(sizes[0], items, p=often)] + [random.integers(size, size=items) for size in sizes[1:]]
        codes = np.unique(np.concatenate([codes, np.stack(more, axis=1)]), axis=0)
    return codes[random.permutation(len(codes))[:items]]


def generate_of(model, codes: np.ndarray) -> Search:  # type: ignore[no-untyped-def]
    """What people use: transformers, with a dictionary from what was spelled to what may follow."""
    spelled = [tuple(row) for row in (codes + np.array(OFFSETS)).tolist()]
    item_of = {code: item for item, code in enumerate(spelled)}
    following: dict[tuple[int, ...], set[int]] = {}
    for code in spelled:
        for level in range(len(code)):
            following.setdefault(code[:level], set()).add(code[level])
    allowed = {prefix: sorted(tokens) for prefix, tokens in following.items()}

    @torch.no_grad()
    def search(tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        found = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            num_beams=BEAM,
            num_return_sequences=BEAM,
            max_new_tokens=len(SIZES),
            do_sample=False,
            length_penalty=0.0,
            early_stopping="never",
            prefix_allowed_tokens_fn=lambda _, so_far: allowed[tuple(so_far[1:].tolist())],
            return_dict_in_generate=True,
            output_scores=True,
        )
        items = [item_of[tuple(code)] for code in found.sequences[:, 1:].tolist()]
        return np.array(items).reshape(-1, BEAM), found.sequences_scores.view(-1, BEAM).cpu().numpy()

    return search


@contextmanager
def never_waiting(device: torch.device) -> Iterator[None]:
    """RuntimeError if anything inside waits for the GPU."""
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


def ours_of(model, codes: np.ndarray) -> Search:  # type: ignore[no-untyped-def]
    device = model.device
    speller, trie = T5Speller(model, OFFSETS), Trie(codes, SIZES).to(device)

    def search(tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        parts = []
        for part in tokens.split(people_at_once(device)):
            mask, reachable = torch.ones_like(part, dtype=torch.bool), trie.reachable()
            with never_waiting(device):
                parts.append(speller.search(part, mask, trie, reachable, BEAM, BEAM))
        return torch.cat([p[0] for p in parts]).cpu().numpy(), torch.cat([p[1] for p in parts]).cpu().numpy()

    return search


def check_same(theirs: tuple[np.ndarray, np.ndarray], ours: tuple[np.ndarray, np.ndarray]) -> float:
    """The share of users whose lists are the same in every place; AssertionError unless all are but for ties."""
    np.testing.assert_allclose(ours[1], theirs[1], atol=SINGLE_PRECISION, rtol=1e-6)
    for user in np.flatnonzero((theirs[0] != ours[0]).any(axis=1)):
        score_of = dict(zip(theirs[0][user].tolist(), theirs[1][user].tolist(), strict=True))
        for place in np.flatnonzero(theirs[0][user] != ours[0][user]):
            # An item at the very end may have tied with one that is not listed.
            score = score_of.get(int(ours[0][user, place]), float(theirs[1][user, -1]))
            assert abs(score - theirs[1][user, place]) < SINGLE_PRECISION, f"user {user} differs in place {place}"
    return float((theirs[0] == ours[0]).all(axis=1).mean())


def time_t5(seed: int, history: int, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    codes, users, at_once = catalog(ITEMS, seed), USERS[device.type], people_at_once(device)
    torch.manual_seed(seed)
    model = t5_of(TigerConfig(), FIRST_CODE + sum(SIZES)).eval().to(device)
    read = np.random.default_rng(seed).integers(ITEMS, size=(users, history))
    tokens = torch.from_numpy((codes[read] + np.array(OFFSETS)).reshape(users, -1))
    tokens = torch.cat([torch.full((users, 1), PERSON), tokens], dim=1).to(device)  # [B, S]

    plain = model.shared.weight.detach().clone()
    same = []
    for peaky in (4.0, 1.0):  # the head is tied to the embeddings; the last round leaves the weights as drawn
        model.shared.weight.data = plain * peaky
        few = tokens[:16]
        theirs = [generate_of(model, codes)(part) for part in few.split(4)]
        joined = np.concatenate([p[0] for p in theirs]), np.concatenate([p[1] for p in theirs])
        same.append(check_same(joined, ours_of(model, codes)(few)))

    generate, ours = generate_of(model, codes), ours_of(model, codes)
    work: dict[str, Callable[[], object]] = {
        f"generate, {size} at once": lambda size=size: generate(tokens[:size])
        for size in BATCHES_OF_GENERATE[device.type]
    }
    units = {f"generate, {size} at once": size for size in BATCHES_OF_GENERATE[device.type]}
    attend = torch.ones_like(tokens[:at_once])
    with torch.no_grad():
        work["ours"], units["ours"] = lambda: ours(tokens), users
        work["encoder"] = lambda: model.encoder(input_ids=tokens[:at_once], attention_mask=attend)
        units["encoder"] = at_once
        costs = in_turns(work, units, rounds)
    best = min((name for name in costs if name.startswith("generate")), key=lambda name: spent(costs[name], device))
    print(f"seed {seed}, {history} items: {best} suits transformers best; identical lists {same}")
    chosen = {"transformers generate": costs[best], "our search": costs["ours"], "encoder alone": costs["encoder"]}
    told = {name: rates(cost, device) for name, cost in chosen.items()}
    told["our search"] |= {
        "identical_lists": min(same),
        "times_generate_wall": costs[best].wall / costs["ours"].wall,
    }
    if device.type == "cpu":
        told["our search"]["times_generate"] = costs[best].cpu / costs["ours"].cpu
    return told


def spent(cost: Cost, device: torch.device) -> float:
    """Seconds of the processor, or of the clock where a GPU does the work."""
    return cost.cpu if device.type == "cpu" else cost.wall


def rates(cost: Cost, device: torch.device) -> dict[str, float]:
    per_second = {"users_per_second": 1 / cost.wall}
    return per_second | ({"users_per_cpu_second": 1 / cost.cpu} if device.type == "cpu" else {})


def default_model(codes: np.ndarray, seed: int, sizes: tuple[int, ...] = SIZES) -> Retriever:
    torch.manual_seed(seed)
    everyone = torch.ones(len(codes), dtype=torch.bool)
    model = SequenceModel(RetrieverConfig(), torch.randn(len(codes), 16), torch.from_numpy(codes), sizes, everyone)
    assert model.decoder is not None
    torch.nn.init.normal_(model.decoder.prefixes.weight, std=0.1)  # zero before training
    return Retriever(model)


def time_own(seed: int, history: int, device: torch.device, rounds: int) -> dict[str, dict[str, float]]:
    retriever = default_model(catalog(ITEMS, seed), seed).to(device)
    histories = list(np.random.default_rng(seed).integers(ITEMS, size=(256, history)))
    h, reachable = retriever.states(histories), retriever.trie.reachable(None, histories)
    beam_search(retriever.model, h, reachable, 10, BEAM)  # the first search makes the tables of the tree
    with never_waiting(device):
        beam_search(retriever.model, h, reachable, 10, BEAM)
    work = {
        "encoder": lambda: retriever.states(histories),
        "beam": lambda: beam_search(retriever.model, h, reachable, 10, BEAM),
        "search": lambda: retriever.recommend(histories, 10, mode="codes", beam=BEAM),
        "dense": lambda: retriever.recommend(histories, 10, mode="dense"),
        "fused": lambda: retriever.recommend(histories, 10, mode="fused", beam=BEAM),
    }
    costs = in_turns(work, dict.fromkeys(work, len(histories)), rounds)
    told = {
        name: rates(costs[key], device)
        for name, key in (
            ("encoder alone", "encoder"),
            ("search alone", "beam"),
            ("encoder and search", "search"),
            ("encoder and dense head", "dense"),
            ("encoder and both, fused", "fused"),
        )
    }
    told["encoder and search"]["share_of_encoder_rate"] = spent(costs["encoder"], device) / spent(
        costs["search"], device
    )
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--record", type=Path, help="write the numbers as records into this folder")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where the models are")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device, on = torch.device(options.device), "" if options.device == "cpu" else ", one GPU"

    tables: list[tuple[str, str, list[dict[str, dict[str, float]]]]] = []
    for history in HISTORIES_OF_T5:
        runs = [time_t5(seed, history, device, ROUNDS) for seed in SEEDS]
        tables.append(("decoding, T5 of TIGER's shape", f"{history} items{on}", runs))
    for history in (20, RetrieverConfig().max_history):
        runs = [time_own(seed, history, device, 2 * ROUNDS) for seed in SEEDS]
        tables.append(("decoding, our default model", f"{history} items{on}", runs))
    records = []
    for dataset, split, runs in tables:
        for model in runs[0]:
            for metric in runs[0][model]:
                values = [run[model][metric] for run in runs]
                records.append(record(dataset, split, model, metric, values, SEEDS, COMMAND[options.device]))
                print(f"{dataset}, {split}: {model}: {metric} {np.mean(values):.3f}")
    if options.record:
        results.write_records("decoding", records, options.record)


if __name__ == "__main__":
    main()
