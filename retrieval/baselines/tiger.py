"""TIGER (Rajput et al. 2023, "Recommender Systems with Generative Retrieval"): spell the next item's semantic ID.

A T5-shaped encoder-decoder, trained from scratch, reads the codes of the last items as a sentence and writes the codes
of the next one (section 3.2; sizes, dropout and history length of section 4). Every code of every level is one token.
Where this differs from the paper: IDs come from outside, by default residual k-means (section 4.2 compares it with the
RQ-VAE, which `tokenizer: rqvae` asks for) with a last code that makes them unique; the token of the person is the same
for everybody, for a recommender is asked about histories and not about names; the optimiser is AdamW. Beams spell
existing items only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import numpy as np
import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.baselines.fitting import fit, grouped
from retrieval.baselines.t5 import T5Speller, people_at_once
from retrieval.model import Count, Dropout, LearningRate, Share
from retrieval.ranking import Ranked, check_allowed, check_histories, liked_part, padded, recall_and_ndcg
from retrieval.semantic_ids import SemanticIds, assign_unique, make_tokenizer
from retrieval.training import fingerprint_of
from retrieval.trie import Trie

if TYPE_CHECKING:
    from transformers import T5ForConditionalGeneration

PAD, PERSON, FIRST_CODE = 0, 1, 2  # tokens; the pad token also starts the decoder, as in T5


@dataclass(frozen=True)
class TigerConfig:
    """Sizes as in the paper. tokenizer: makes the IDs where none are given. `validation_people` are asked after an
    epoch: a search takes its time."""

    tokenizer: str = "residual_kmeans"
    dim: Count = 128
    layers: Count = 4
    heads: Count = 6
    head_dim: Count = 64
    feed_forward: Count = 1024
    dropout: Dropout = 0.1
    max_history: Count = 20
    beam: Count = 50
    epochs: Count = 100
    batch_size: Count = 256
    learning_rate: LearningRate = 1e-3
    weight_decay: Annotated[float, Ge(0)] = 0.05
    warmup: Share = 0.05
    patience: Count = 10
    stop_after: Count | None = None
    validation_people: Count = 1000


class Tiger:
    """ids: the semantic IDs of all items; None makes them of the vectors given to `fit`, by the config's tokenizer.

    validation: (histories, targets) for early stopping by NDCG@10. checkpoint_dir, progress: as in `train_retriever`.
    After `fit`, `chosen` is the config with the epoch that validation chose.
    """

    name = "tiger"

    def __init__(
        self,
        config: TigerConfig = TigerConfig(),
        *,
        ids: SemanticIds | None = None,
        validation: tuple[Sequence[np.ndarray], np.ndarray] | None = None,
        checkpoint_dir: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        self.ids = ids
        self.validation = validation
        self.checkpoint_dir = checkpoint_dir
        self.progress = progress

    def fit(
        self,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray] | None,
        vectors: np.ndarray,
        seed: int = 0,
    ) -> None:
        liked = liked_part(check_histories(histories, len(vectors)), preferences)
        ids = self.ids
        if ids is None:
            tokenizer = make_tokenizer(self.config.tokenizer)
            ids = assign_unique(tokenizer.fit(vectors, seed), vectors, tokenizer, seed=seed)
        if len(ids) != len(vectors):
            raise ValueError(f"{len(ids)} semantic IDs but {len(vectors)} vectors: they must be of the same catalog")
        self.trie = Trie(ids.codes, ids.sizes)
        self.offsets = tuple(int(o) for o in FIRST_CODE + np.cumsum([0, *ids.sizes[:-1]]))
        self.tokens = torch.from_numpy(ids.codes + np.array(self.offsets))  # [N, L]
        examples = [(person, event) for person, history in enumerate(liked) for event in range(1, len(history))]
        if not examples:
            raise ValueError("there is nothing to train on: no history has two events")
        pasts = [liked[person][max(0, event - self.config.max_history) : event] for person, event in examples]
        targets = np.array([liked[person][event] for person, event in examples])
        lengths = np.array([len(past) for past in pasts])

        def loss_of(model: nn.Module, rows: np.ndarray, device: torch.device) -> Tensor:
            tokens, mask = self._sentences([pasts[row] for row in rows])
            labels = self.tokens[torch.from_numpy(targets[rows])]
            return model(
                input_ids=tokens.to(device), attention_mask=mask.long().to(device), labels=labels.to(device)
            ).loss

        told = [] if self.validation is None else [*self.validation[0], self.validation[1]]
        self.model, best_epoch = fit(
            lambda: t5_of(self.config, FIRST_CODE + sum(ids.sizes)),
            self.config,
            lambda epoch: grouped(lengths, self.config.batch_size, seed, epoch),
            loss_of,
            score=None if self.validation is None else self._ndcg,
            fingerprint=fingerprint_of(self.config, seed, [*liked, ids.codes, *told]),
            seed=seed,
            checkpoint_dir=self.checkpoint_dir,
            progress=self.progress,
        )
        self.chosen = replace(self.config, stop_after=best_epoch)

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        k: int,
        *,
        preferences: Sequence[np.ndarray] | None = None,
        allowed: np.ndarray | None = None,
        hide_history: bool = True,
    ) -> Ranked:
        allowed = check_allowed(allowed, len(self.tokens))
        histories = check_histories(histories, len(self.tokens))
        pasts = [liked[-self.config.max_history :] for liked in liked_part(histories, preferences)]
        device = next(self.model.parameters()).device
        speller = T5Speller(cast("T5ForConditionalGeneration", self.model), self.offsets)
        trie = self.trie.to(device)
        items = np.full((len(histories), k), -1, dtype=np.int64)
        scores = np.full((len(histories), k), -np.inf, dtype=np.float32)
        order = np.argsort([len(past) for past in pasts], kind="stable")  # people of like length pad each other less
        at_once = people_at_once(device)
        for rows in np.split(order, range(at_once, len(order), at_once)):
            if len(rows) == 0:
                continue
            tokens, mask = self._sentences([pasts[row] for row in rows])
            reachable = trie.reachable(allowed, [histories[row] for row in rows] if hide_history else None)
            found = speller.search(tokens.to(device), mask.to(device), trie, reachable, k, self.config.beam)
            items[rows], scores[rows] = found[0].cpu().numpy(), found[1].cpu().numpy()
        return items, scores

    def _sentences(self, pasts: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """What the encoder reads: tokens int64 and mask bool, [B, 1 + T * L], padded at the end."""
        items = torch.from_numpy(padded(pasts)[0]).unsqueeze(2)  # [B, T, 1]
        codes = self.tokens[items.squeeze(2).clamp(min=0)].masked_fill(items < 0, PAD)  # [B, T, L]
        tokens = F.pad(codes.flatten(1), (1, 0), value=PERSON)
        return tokens, tokens != PAD

    def _ndcg(self, model: nn.Module) -> float:
        assert self.validation is not None
        self.model = model
        histories, targets = self.validation
        asked = np.random.default_rng(0).permutation(len(histories))[: self.config.validation_people]
        items, _ = self.recommend([histories[row] for row in asked], 10)
        return recall_and_ndcg(items, np.asarray(targets)[asked])[1]


def t5_of(config: TigerConfig, tokens: int) -> T5ForConditionalGeneration:
    """An untrained T5 of this shape."""
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=tokens,
            d_model=config.dim,
            d_kv=config.head_dim,
            num_heads=config.heads,
            d_ff=config.feed_forward,
            num_layers=config.layers,
            num_decoder_layers=config.layers,
            dropout_rate=config.dropout,
            pad_token_id=PAD,
            eos_token_id=None,
            decoder_start_token_id=PAD,  # type: ignore[call-arg]  # a knob of generation that the model reads as well
        )
    )
