"""The diffusion prior: dreams vectors of items that a person would love. New people need no training."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffusion.flow import asked_for, denoised, integrate, joint_noise, levels, representatives
from diffusion.guidance import Dials, branches
from diffusion.network import KINDS, STEERS, Context, Denoiser, PriorConfig

ROWS_AT_ONCE = 4096
"""Vectors in one forward; a bound on memory that does not change any result."""
POOL = 2
"""Dreams of which each seed is chosen where a whole set of seeds is grounded."""
DRAFTS = 4
"""Dreams out of which one is chosen that suits what somebody with a taste asks for."""
PULLS = {"text": 1.0, "image": 1.0, "audio": 1.0, "avoid": -0.5}
"""How far a steer moves a dream of somebody with a taste when its dial is 1; the dream itself is as long as 1."""


@dataclass
class Conditions:
    """What is known about B people. Item vectors are float32, unit length, in the item space; arrays or tensors.

    history [B, T, D], oldest first (T may be 0); preferences [B, T] in [-1, 1]; mask bool [B, T], True where there is
    an event. text, image, audio, avoid: [B, D] or None; a row of zeros says that this person gives no such steer.
    ordered: False if the order of the events is unknown.
    """

    history: np.ndarray
    preferences: np.ndarray
    mask: np.ndarray
    text: np.ndarray | None = None
    image: np.ndarray | None = None
    audio: np.ndarray | None = None
    avoid: np.ndarray | None = None
    ordered: bool = True

    @classmethod
    def from_histories(
        cls,
        histories: Sequence[np.ndarray],
        preferences: Sequence[np.ndarray],
        vectors: np.ndarray,
        *,
        max_history: int = 50,
        text: np.ndarray | None = None,
        image: np.ndarray | None = None,
        audio: np.ndarray | None = None,
        avoid: np.ndarray | None = None,
        ordered: bool = True,
    ) -> Conditions:
        """Look up the last `max_history` events of each history (item indices) in vectors [N, D]; pad to the left."""
        kept = [np.asarray(h, dtype=np.int64)[-max_history:] for h in histories]
        length = max((len(h) for h in kept), default=0)
        history = np.zeros((len(kept), length, vectors.shape[1]), np.float32)
        rated, mask = np.zeros((len(kept), length), np.float32), np.zeros((len(kept), length), bool)
        for row, (items, preference) in enumerate(zip(kept, preferences, strict=True)):
            if len(items):
                history[row, -len(items) :] = vectors[items]
                rated[row, -len(items) :] = np.asarray(preference)[-len(items) :]
                mask[row, -len(items) :] = True
        return cls(history, rated, mask, text, image, audio, avoid, ordered)

    def __len__(self) -> int:
        return len(self.history)

    def padded(self, length: int) -> Conditions:
        """The same with histories padded to the left to `length` events."""
        more = ((0, 0), (length - np.shape(self.history)[1], 0))
        return replace(
            self,
            history=np.pad(self.history, (*more, (0, 0))),
            preferences=np.pad(self.preferences, more),
            mask=np.pad(self.mask, more),
        )

    def tensors(self, dim: int, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The arguments of Denoiser.read; raises ValueError where a shape or a number does not fit a prior of `dim`."""
        history = torch.as_tensor(self.history, dtype=torch.float32, device=device)
        preferences = torch.as_tensor(self.preferences, dtype=torch.float32, device=device)
        mask = torch.as_tensor(self.mask, dtype=torch.bool, device=device)
        if history.ndim != 3 or history.shape[2] != dim:
            raise ValueError(f"Conditions.history must be [B, T, {dim}] for this prior, not {tuple(history.shape)}")
        if preferences.shape != history.shape[:2] or mask.shape != history.shape[:2]:
            raise ValueError(
                f"Conditions.preferences and .mask must be {tuple(history.shape[:2])} like the history, "
                f"not {tuple(preferences.shape)} and {tuple(mask.shape)}"
            )
        steers = torch.zeros(len(history), len(STEERS), dim, device=device)
        for i, name in enumerate(STEERS):
            value = getattr(self, name)
            if value is not None:
                value = torch.as_tensor(value, dtype=torch.float32, device=device)
                if value.shape != (len(history), dim):
                    raise ValueError(f"Conditions.{name} must be {(len(history), dim)}, not {tuple(value.shape)}")
                steers[:, i] = value
        history, preferences = history * mask[..., None], preferences * mask
        for name, tensor in {"history or preferences": history.sum(-1) + preferences, "steers": steers}.items():
            if not tensor.isfinite().all():
                raise ValueError(f"Conditions.{name}: not all numbers are finite; drop the events or steers concerned")
        return {
            "history": history,
            "preferences": preferences,
            "mask": mask,
            "steers": nn.functional.normalize(steers, dim=-1),
            "given": steers.abs().sum(-1) > 0,
            "ordered": torch.full((len(history),), self.ordered, device=device),
        }


def _generator(seed: int, draft: int) -> torch.Generator:
    """Each draft of a person's dreams has noise of its own; the first has that of the seed itself."""
    return torch.Generator().manual_seed((seed + draft * 0x9E3779B97F4A7C15) % 2**63)


def visible_tokens(context: Context, subsets: Sequence[frozenset[str]]) -> Tensor:
    """Which tokens each branch may see: those present whose kind is in its subset. -> bool [B, G, S]"""
    table = torch.tensor([[kind in subset for kind in KINDS] + [True] for subset in subsets])  # last: kind -1
    allowed = table.to(context.kind.device)[:, context.kind].transpose(0, 1)  # [B, G, S]
    return allowed & context.present.unsqueeze(1)


class SavedModel:
    """A Denoiser with `config.json` and `model.safetensors`."""

    def __init__(self, network: Denoiser) -> None:
        self.network = network.eval().requires_grad_(False)

    @property
    def dim(self) -> int:
        return self.network.config.dim

    def save_pretrained(self, path: Path | str) -> None:
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous().cpu() for name, value in self.network.state_dict().items()}
        save_file(weights, folder / "model.safetensors.part")
        os.replace(folder / "model.safetensors.part", folder / "model.safetensors")
        config = {"class": type(self).__name__, **asdict(self.network.config)}
        (folder / "config.json.part").write_text(json.dumps(config, indent=2) + "\n")
        os.replace(folder / "config.json.part", folder / "config.json")

    @classmethod
    def from_pretrained(cls, path: Path | str, device: str = "cpu") -> Self:
        """Load what save_pretrained wrote. FileNotFoundError if it is not there, ValueError if it is another model."""
        folder = Path(path)
        for name in ("config.json", "model.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder} has no {name}; train a prior and save_pretrained() it there")
        config = json.loads((folder / "config.json").read_text())
        if config.pop("class", None) != cls.__name__:
            raise ValueError(f"{folder} does not hold a {cls.__name__}; give the folder of one")
        network = Denoiser(PriorConfig(**config))
        network.load_state_dict(load_file(folder / "model.safetensors"))
        return cls(network.to(device))

    def read(self, conditions: Conditions, rows: slice) -> tuple[Context, set[str]]:
        """Context of some of the people, and the kinds of conditions that anyone of them has."""
        tensors = conditions.tensors(self.dim, next(self.network.parameters()).device)
        context = self.network.read(**{name: value[rows] for name, value in tensors.items()})
        return context, {kind for i, kind in enumerate(KINDS) if bool((context.present & (context.kind == i)).any())}


class Prior(SavedModel):
    """Samples item vectors for people; see `Conditions` for what it is told and `Dials` for what can be turned."""

    @torch.no_grad()
    def sample(
        self,
        conditions: Conditions,
        n: int,
        *,
        steps: int = 8,
        dials: Dials = Dials(),
        seed: int | Sequence[int] = 0,
        pool: int = 1,
        edit: np.ndarray | None = None,
        strength: float = 0.3,
    ) -> np.ndarray:
        """n seed embeddings for each of B people -> float32 [B, n, D], unit length.

        A person's seeds depend on that person's conditions, n, pool, steps, dials and seed only. One step gives about
        the mean of the person's taste; a mixed taste needs four or more. Several seeds give each person one of their
        own.

        pool: the seeds are the representatives of so many times as many dreams (`flow.representatives`), those that
        stand for most of them first. With 1 they are the dreams as drawn, and more of them begin with the same ones.

        A steer of somebody who likes something chooses among their dreams and moves them toward it (`flow.asked_for`,
        `PULLS`): the network that is told both dreams the steer and forgets the person. Where nothing is liked, or
        likes do not count, the network is told the steer.

        edit [D]: an item vector to change instead of dreaming from nothing: it is noised up to the level `strength`
        and the path begins there (SDEdit, Meng et al. 2022, section 3). 0 leaves it as it is, 1 forgets it.
        """
        if n < 1 or steps < 1 or pool < 1 or not 0 <= strength <= 1:
            raise ValueError(
                f"Prior.sample needs n >= 1, steps >= 1, pool >= 1 and strength in [0, 1], not n={n}, steps={steps}, "
                f"pool={pool}, strength={strength}"
            )
        each = [seed] if isinstance(seed, int) else seed
        if not isinstance(seed, int) and len(each) != len(conditions):
            raise ValueError(f"Prior.sample needs one seed, or one for each of {len(conditions)} people")
        if edit is not None and np.shape(edit) != (self.dim,):
            raise ValueError(f"Prior.sample edits one vector [{self.dim}], not {list(np.shape(edit))}")
        drawn, level = pool * n, 1.0 if edit is None else strength
        conditions, pull = self._pull(conditions, dials)
        drafts = DRAFTS if pull.any() else 1
        noise = [joint_noise(drawn, self.dim, _generator(one, draft)) for one in each for draft in range(drafts)]
        x = dials.temperature * torch.cat(noise).view(len(each), drafts * drawn, self.dim)
        if edit is not None:
            alpha, sigma = levels(torch.tensor(level), self.network.config.noise_shift)
            x = alpha * torch.from_numpy(scaled(edit[None])) + sigma * x
        x = x.expand(len(conditions), -1, -1)  # [B, drafts * drawn, D]
        people = max(1, ROWS_AT_ONCE // (drafts * drawn))
        seeds = [np.zeros((0, n, self.dim), np.float32)]
        for first in range(0, len(conditions), people):
            rows = slice(first, first + people)
            dreams = self._sample(conditions, rows, x, level, steps, dials).cpu()
            if drafts > 1:
                chance = torch.stack([torch.rand(drawn, drafts, generator=_generator(one, drafts)) for one in each])
                chance = chance.expand(len(conditions), -1, -1)[rows]
                dreams = asked_for(dreams.unflatten(1, (drafts, drawn)).transpose(1, 2), pull[rows], chance)
            seeds.append((representatives(dreams, n) if pool > 1 else dreams).numpy())
        return np.concatenate(seeds)

    def _pull(self, conditions: Conditions, dials: Dials) -> tuple[Conditions, Tensor]:
        """Where the steers of those who have a taste pull their dreams, [B, D]; and the conditions without these."""
        told = conditions.tensors(self.dim)
        taste = (told["mask"] & (told["preferences"] >= 0)).any(1) & (dials.likes != 0)  # [B]
        weights = torch.tensor([getattr(dials, name) * PULLS[name] for name in STEERS])
        pull = torch.einsum("c,bcd->bd", weights, told["steers"]) * taste[:, None]
        text, image, audio, avoid = (told["steers"] * ~taste[:, None, None]).numpy().swapaxes(0, 1)
        return replace(conditions, text=text, image=image, audio=audio, avoid=avoid), pull

    def _sample(self, conditions: Conditions, rows: slice, x: Tensor, start: float, steps: int, dials: Dials) -> Tensor:
        """Follow the path of x [B, n, D] from the level `start` for some of the people -> [b, n, D], unit length"""
        context, given = self.read(conditions, rows)
        shift = self.network.config.noise_shift
        plans: dict[tuple[frozenset[str], ...], tuple[Tensor, Tensor]] = {}  # masks and summaries, read once

        def estimate(x: Tensor, level: float) -> Tensor:
            plan = branches(given, dials, level)
            subsets = tuple(subset for subset, _ in plan)
            if subsets not in plans:
                visible = visible_tokens(context, subsets)
                plans[subsets] = visible, self.network.summarise(context, visible)
            u = torch.tensor(level, device=x.device)
            spread = x.unsqueeze(1).expand(-1, len(plan), -1, -1)  # [B, G, n, D]
            correction = self.network(spread, u.view(1, 1, 1), context, *plans[subsets])
            weights = torch.tensor([weight for _, weight in plan], dtype=x.dtype, device=x.device)
            return denoised(torch.einsum("g,bgnd->bnd", weights, correction), x, *levels(u, shift))

        x = x[rows].to(context.tokens.device)
        if start > 0:
            x = integrate(estimate, x, steps, shift, start)
        return nn.functional.normalize(x, dim=-1)


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Unit vectors [N, D] -> radius sqrt(D), where the flow runs."""
    return (vectors * math.sqrt(vectors.shape[1])).astype(np.float32)


def with_dim(config: PriorConfig, vectors: np.ndarray) -> PriorConfig:
    """The config for these vectors; ValueError if it was made for another dimension."""
    if config.dim not in (0, vectors.shape[1]):
        raise ValueError(f"PriorConfig.dim is {config.dim} but the item vectors have {vectors.shape[1]}; use dim=0")
    return replace(config, dim=vectors.shape[1])
