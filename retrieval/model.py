"""The sequence model: a causal transformer over items, a dense head, and a small decoder that spells codes.

The split into a large transformer over positions and a small one over the codes of one position is that of the
RQ-Transformer (Lee et al. 2022, "Autoregressive Image Generation using Residual Quantization", section 3.2): here the
depth part is an MLP per level, fed with the position's state and the codes spelled so far. The dense head beside it,
tied to the inputs, is what LIGER (Yang et al. 2024) found to lift quality and rescue new items. With neither item
vectors nor codes, what remains is SASRec (Kang & McAuley 2018).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from retrieval.trie import Trie

Count = Annotated[int, Ge(1)]
Share = Annotated[float, Interval(ge=0, le=1)]
Dropout = Annotated[float, Interval(ge=0, lt=1)]
LearningRate = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class RetrieverConfig:
    """Model and training knobs. queries: how many of the sequences also train one answer to a query. residual: whether
    an item that was trained on has a vector of its own, beside content and code. Validation chooses the last three, by
    NDCG@`choose_at`: the epochs to stop after, what codes count beside the dense head."""

    dim: Count = 128
    blocks: Count = 2
    heads: Count = 4
    dropout: Dropout = 0.3
    max_history: Count = 50
    epochs: Count = 20
    code_epochs: Annotated[int, Ge(0)] = 6
    batch_size: Count = 64
    learning_rate: LearningRate = 4e-3
    weight_decay: Annotated[float, Ge(0)] = 0.05
    warmup: Share = 0.05
    patience: Count = 4
    choose_at: Count = 10
    full_softmax_up_to: Annotated[int, Ge(0)] = 5_000
    negatives: Count = 512
    queries: Share = 1.0
    residual: bool = True
    depth_hidden: Count = 128
    depth_width: Count = 128
    stop_after: Count | None = None
    codes_stop_after: Annotated[int, Ge(0)] | None = None
    fusion_weight: Share = 0.3

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise ValueError(f"dim={self.dim} is not a multiple of heads={self.heads}")


class ItemTower(nn.Module):
    """What an item looks like to the model: content projection + sum of its codes' embeddings + learned residual.

    The residual counts only for items seen in training, so an unseen item is judged by content and codes alone and
    never by what being a negative example taught.
    """

    vectors: Tensor
    codes: Tensor
    seen: Tensor

    def __init__(self, dim: int, vectors: Tensor, codes: Tensor, sizes: Sequence[int], seen: Tensor) -> None:
        """vectors float32 [N, D] (D may be 0), codes int64 [N, L] (L may be 0), seen bool [N]."""
        super().__init__()
        self.register_buffer("vectors", vectors)
        self.register_buffer("codes", codes)
        self.register_buffer("seen", seen)
        self.content = nn.Linear(vectors.shape[1], dim, bias=False) if vectors.shape[1] else None
        self.code_embeddings = nn.ModuleList(nn.Embedding(size, dim) for size in sizes)
        self.residual = nn.Embedding(len(vectors), dim)
        if self.content is not None:
            nn.init.normal_(self.content.weight, std=dim**-0.5)
        for embedding in (*self.code_embeddings, self.residual):
            assert isinstance(embedding, nn.Embedding)
            nn.init.normal_(embedding.weight, std=0.5 * dim**-0.5)

    def forward(self, items: Tensor) -> Tensor:
        """int64 [...] -> [..., d]"""
        total = self.residual(items) * self.seen[items].unsqueeze(-1)
        if self.content is not None:
            total = total + self.content(self.vectors[items])
        for level, embedding in enumerate(self.code_embeddings):
            total = total + embedding(self.codes[items, level])
        return total


class Block(nn.Module):
    """Pre-norm transformer block with causal attention."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        people, steps, dim = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(people, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # [B, heads, T, d / heads]
        mixed = mixed.transpose(1, 2).reshape(people, steps, dim)  # [B, T, d]
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class Asked(NamedTuple):
    """Queries to learn from. row, place: int64 [S], the items of a batch of sequences that answer them. told: int64
    [S], how much of the history before is known: all of it or nothing. about: float32 [S, D], the query as a unit
    vector of the item space."""

    row: Tensor
    place: Tensor
    told: Tensor
    about: Tensor


class Backbone(nn.Module):
    """Item embeddings [B, T, d] -> states [B, T + 1, d]; state t has read the first t items, state 0 nothing at all."""

    def __init__(self, config: RetrieverConfig) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(config.dim) * 0.02)
        self.positions = nn.Parameter(torch.randn(config.max_history + 2, config.dim) * 0.02)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.start.expand(len(x), 1, -1), x], dim=1)  # [B, T + 1, d]
        x = self.dropout(x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class DepthDecoder(nn.Module):
    """Spells a code level by level: p(c_l | h, c_1..c_{l-1}), a softmax over the codes that continue to an item.

    The probabilities of all items sum to 1: nothing is spent on codes that no item has, and where only one code can
    follow, it follows. Each level reads the state h and the codes spelled so far through one hidden layer, whose part
    from h is the same for all beams of a person, and weighs what may follow by dot product. A code is known by its
    embedding and, from the second level on, by one of the whole prefix it completes, for the same code means something
    else under each prefix; these are found by a hash (Svenstrup et al. 2017, "Hash Embeddings for Efficient Word
    Representations", section 2). A new prefix has none yet and goes by its codes.
    """

    def __init__(self, dim: int, sizes: Sequence[int], buckets: int, hidden: int, width: int) -> None:
        """hidden, width: of each level's hidden layer, and of the embeddings of what may follow."""
        super().__init__()
        self.enter = nn.ModuleList(nn.Linear(dim, hidden) for _ in sizes)
        self.spelled = nn.ModuleList(
            nn.ModuleList(nn.Embedding(size, hidden) for size in sizes[:level]) for level in range(len(sizes))
        )
        self.leave = nn.ModuleList(nn.Linear(hidden, width, bias=False) for _ in sizes)
        self.past = nn.ModuleList(nn.Linear(dim, width) for _ in sizes)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in sizes)
        self.codes = nn.ModuleList(nn.Embedding(size, width) for size in sizes)
        self.prefixes = nn.Embedding(buckets, width)
        for tables in self.spelled:
            for weight in tables.parameters():
                nn.init.normal_(weight, std=0.3)
        for weight in self.codes.parameters():
            nn.init.normal_(weight, std=width**-0.5)
        nn.init.zeros_(self.prefixes.weight)

    def read(self, level: int, h: Tensor, spelled: Tensor, who: Tensor) -> Tensor:
        """What is asked of the children of R nodes: h [B, d] -> [R, width]

        spelled: int64 [R, level], the codes so far; who: int64 [R], which of the states they are spelled after.
        """
        inner, outer = self.enter[level](h)[who], self.past[level](h)[who]
        for place, table in enumerate(self.spelled[level].children()):
            inner = table(spelled[:, place]).add_(inner)  # in the table's precision, also where products are in half
        outer += self.leave[level](inner.relu_())
        return self.norms[level](outer)

    def known_by(self, level: int, code: Tensor, bucket: Tensor) -> Tensor:
        """Embeddings of nodes of `level` + 1, by last code and hash of the whole prefix: int64 [E] -> [E, width]"""
        embeddings = self.codes[level](code)
        return embeddings + self.prefixes(bucket) if level else embeddings


@dataclass(frozen=True)
class Choices:
    """begin: int64 [nodes of a level, + 1], where the children of each node begin in `known` [E, width], the embeddings
    of all nodes that have brothers. An only child is certain and not there."""

    begin: Tensor
    known: Tensor


class SequenceModel(nn.Module):
    """Item tower, backbone, dense head (state · item embedding) and depth decoder, trained at all positions at once."""

    def __init__(
        self,
        config: RetrieverConfig,
        vectors: Tensor,
        codes: Tensor,
        sizes: Sequence[int],
        seen: Tensor,
        buckets: int = 0,
    ) -> None:
        """buckets: how many prefixes the decoder tells apart; 0 takes as many as there are items, or a little more."""
        super().__init__()
        self.config = config
        self.sizes = tuple(int(size) for size in sizes)
        self.tower = ItemTower(config.dim, vectors, codes, self.sizes, seen)
        self.backbone = Backbone(config)
        self._trie: Trie | None = None
        self._choices_known: list[Choices] | None = None
        self._buckets: list[Tensor] = []
        self.buckets = buckets or 1 << max(8, len(seen) - 1).bit_length()
        depth = (config.depth_hidden, config.depth_width)
        self.decoder = DepthDecoder(config.dim, self.sizes, self.buckets, *depth) if self.sizes else None
        hears = vectors.shape[1] and config.queries
        self.query = nn.Parameter(torch.randn(config.dim) * 0.02) if hears else None
        self.gain = nn.Parameter(torch.ones(config.dim)) if hears else None

    @property
    def items(self) -> int:
        return len(self.tower.seen)

    def item_embeddings(self, chunk: int = 65536) -> Tensor:
        """[N, d], every item of the catalog."""
        everything = torch.arange(self.items, device=self.tower.seen.device)
        return torch.cat([self.tower(part) for part in everything.split(chunk)])

    def states(self, history: Tensor, embeddings: Tensor, about: Tensor | None = None) -> Tensor:
        """history int64 [B, T], padded with -1 at the end; embeddings [M, d] that it indexes -> [B, T + 1, d]

        about: a query of each person, float32 [B, D] in the item space, read after the history like one more item (as
        GENIUS has it, Zhu et al. 2025, and Mender, Paischer et al. 2024): state t + 1 of t items has heard it.
        """
        # Padding comes last and attention is causal: no real position ever reads it.
        x = embeddings[history.clamp(min=0)] * self.config.dim**0.5
        if about is not None:
            assert self.query is not None
            assert self.gain is not None
            assert self.tower.content is not None
            asked, row = self.tower.content(about), torch.arange(len(x), device=x.device)
            last = (history >= 0).sum(dim=1)
            x = F.pad(x, (0, 0, 0, 1)).index_put((row, last), (asked + self.query) * self.config.dim**0.5)
            # What was asked for is also said past the blocks: like to like is where an answer begins.
            return self.backbone(x).index_put((row, last + 1), asked * self.gain, accumulate=True)
        return self.backbone(x)

    def pairs(self, sequences: Tensor, embeddings: Tensor, asked: Asked | None) -> tuple[Tensor, Tensor]:
        """Every state and what it should foretell: [P, d] and int64 [P]; sequences int64 [B, T] index the embeddings.

        Each item from those before it, and the answers of the queries from those and the query.
        """
        real = sequences >= 0
        h, target = self.states(sequences[:, :-1], embeddings)[real], sequences[real]
        if asked is None:
            return h, target
        column = torch.arange(sequences.shape[1] - 1, device=h.device)
        known = sequences[asked.row, :-1].masked_fill(column >= asked.told.unsqueeze(1), -1)
        heard = self.states(known, embeddings, asked.about)
        heard = heard[torch.arange(len(heard), device=h.device), asked.told + 1]  # [S, d]
        return torch.cat([h, heard]), torch.cat([target, sequences[asked.row, asked.place]])

    def forward(self, sequences: Tensor, negatives: Tensor | None, asked: Asked | None = None) -> Tensor:
        """The loss of the dense head on sequences int64 [B, T], -1 padded at the end, and on queries.

        negatives: int64 [M] drawn uniformly, shared by all positions, for a sampled softmax; None for the full softmax.
        """
        if negatives is None:
            embeddings = self.item_embeddings()
            h, target = self.pairs(sequences, embeddings, asked)
            return F.cross_entropy(h @ embeddings.T, target)
        real = sequences >= 0
        unique, where = torch.cat([sequences[real], negatives]).unique(return_inverse=True)
        embeddings = self.tower(unique)  # [U, d]
        local = sequences.masked_scatter(real, where[: -len(negatives)])
        h, target = self.pairs(local, embeddings, asked)
        return sampled_softmax(h, embeddings, target, where[-len(negatives) :], self.items)

    def train(self, mode: bool = True) -> SequenceModel:
        self._choices_known = None
        return super().train(mode)

    @property
    def choices(self) -> list[Choices]:
        """Per level what a search reads of the tree: made once, until the model is trained or moved."""
        device = self.tower.codes.device
        if self._choices_known is None or self._choices_known[0].known.device != device:
            with torch.no_grad():
                self._choices_known = [self._choices_of(level) for level in range(len(self.sizes))]
        return self._choices_known

    def _choices_of(self, level: int) -> Choices:
        degree = self.trie.first[level].diff()
        begin = F.pad(torch.where(degree > 1, degree, 0).cumsum(0), (1, 0))
        child = torch.repeat_interleave(degree > 1, degree).nonzero().squeeze(1)
        return Choices(begin, self.known_by(level, child))

    @property
    def trie(self) -> Trie:
        """The tree of the items' codes."""
        # Threads may ask at once for the first time: the tree is set last, when all that goes with it is there.
        if self._trie is None:
            trie = Trie(self.tower.codes.cpu().numpy(), self.sizes)
            self._buckets = trie.prefix_hashes(self.buckets)
            self._trie = trie
        device = self.tower.codes.device
        if self._trie.leaf_items.device != device:
            self._buckets = [bucket.to(device) for bucket in self._buckets]
            self._trie.to(device)
        return self._trie

    def known_by(self, level: int, child: Tensor) -> Tensor:
        """`DepthDecoder.known_by` of nodes of the trie: child int64 [E], nodes of `level` + 1 -> [E, width]"""
        assert self.decoder is not None
        return self.decoder.known_by(level, self.trie.codes[level][child].long(), self._buckets[level][child])

    def log_prob_of_codes(self, h: Tensor, items: Tensor) -> Tensor:
        """The log-probability that the code of an item is what follows a state, to learn by: h [B, d], items int64 [B]
        -> [B]. Many items after each of a few states are scored faster by `retrieval.decode.score_items`.
        """
        assert self.decoder is not None
        trie, codes, total = self.trie, self.tower.codes[items], h.new_zeros(len(items))
        node = torch.zeros_like(items)
        for level in range(len(self.sizes)):
            target = trie.path[level + 1][items]
            first, end = trie.first[level][node].long(), trie.first[level][node + 1].long()
            count = torch.where(end - first > 1, end - first, 0)  # elsewhere one code can follow, and it is certain
            choice = count.nonzero().squeeze(1)
            if len(choice):
                edges = F.pad(count[choice].cumsum(0), (1, 0))  # of each item's choices in the list of all
                row = torch.repeat_interleave(torch.arange(len(choice), device=h.device), count[choice])
                child = torch.arange(len(row), device=h.device) + (first[choice] - edges[:-1])[row]
                read = self.decoder.read(level, h, codes[choice, :level], choice)
                log_p = self._log_softmax(level, read, edges, row, child)
                total = total.index_add(0, choice, log_p[edges[:-1] + (target - first)[choice]])
            node = target
        return total

    def _log_softmax(self, level: int, read: Tensor, edges: Tensor, row: Tensor, child: Tensor) -> Tensor:
        """Log-probabilities of the children of R nodes, listed one after the other: read [R, width] -> [E]

        edges: int64 [R + 1], where each row begins in the list. row: int64 [E], whose child it is; child: int64 [E].
        All children of a row must be there, for they share its probability.
        """
        if level == 0:  # all rows stand at the root
            logits = read @ self.known_by(0, child[: len(child) // len(read)]).T
            # The product may be of half precision; what is summed over a whole catalog may not.
            return logits.to(self.backbone.start.dtype).log_softmax(dim=1).flatten()
        if self.trie.nodes(level + 1) < len(child):
            nodes, place = torch.arange(self.trie.nodes(level + 1), device=child.device), child
        else:
            nodes, place = child.unique(return_inverse=True)
        logits = dots(read, self.known_by(level, nodes), edges, place)
        top = logits.new_full((len(read),), -torch.inf).scatter_reduce(0, row, logits.detach(), "amax")
        total = logits.new_zeros(len(read)).index_add(0, row, (logits - top[row]).exp())
        return logits - (total.log() + top)[row]


def dots(read: Tensor, known: Tensor, edges: Tensor, at: Tensor) -> Tensor:
    """Dot products of rows of read [R, width] with some rows of known [M, width], listed one after the other: [E]

    edges: int64 [R + 1], where each row of read begins in the list. at: int64 [E], the row of known.
    """
    if read.device.type != "cpu":
        row = torch.arange(len(read), device=read.device).repeat_interleave(edges.diff(), output_size=len(at))
        return (read.index_select(0, row) * known.index_select(0, at)).sum(dim=1)
    with warnings.catch_warnings():  # torch says once that its sparse tensors are young
        warnings.simplefilter("ignore", UserWarning)
        wanted = torch.sparse_csr_tensor(
            edges, at, known.new_zeros(len(at)), (len(read), len(known)), check_invariants=False
        )
    return torch.sparse.sampled_addmm(wanted, read.to(known.dtype), known.T, beta=0.0).values()


def sampled_softmax(h: Tensor, embeddings: Tensor, target: Tensor, negatives: Tensor, items: int) -> Tensor:
    """Cross-entropy against the target and a uniform sample that stands for all other items.

    The log-q correction (Bengio & Senécal 2008; Yi et al. 2019, section 4): each of M negatives drawn with probability
    1 / N counts for N / M items, so log(N / M) is added to its logit. A negative that hits the target is left out.
    """
    positive = (h * embeddings[target]).sum(dim=-1, keepdim=True)  # [P, 1]
    # In full precision again, as above, before it is summed.
    logits = (h @ embeddings[negatives].T).to(h.dtype) + torch.log(torch.tensor(items / len(negatives)))  # [P, M]
    logits = logits.masked_fill(target.unsqueeze(1) == negatives, -torch.inf)
    return (torch.cat([positive, logits], dim=1).logsumexp(dim=1) - positive.squeeze(1)).mean()
