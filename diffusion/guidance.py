"""Dials: how strongly each thing known about a person pulls or pushes, composed in one forward.

Let J be all conditions that are given and whose dial is not 0. With every dial at 1 the estimate is x0(J), the model's
own. A dial w_c other than 1 weighs what condition c adds to the others:

    x0 = x0(J) + sum_c (w_c - 1) * (x0(J) - x0(J without c))

which is classifier-free guidance (Ho & Salimans 2022) for one condition and the composition of Liu et al. 2022
("Compositional Visual Generation", section 3.2) for several, with the conditional independence they assume replaced by
the model's own joint. Steers are such conditions for somebody who likes nothing yet; for everybody else they act on the
finished dreams, with the dial as their strength (`flow.asked_for`). With the other dials at 1, a dial fades smoothly to
"never said" at 0; with several away from 1 the last step to 0 drops how they interact as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from diffusion.network import KINDS


@dataclass(frozen=True)
class Dials:
    """Weights of the conditions (0 ignores, 1 is the model's own, more insists) and how to explore.

    `likes` is 1.5 because that was best on people held out for validation: as calibrated as 1, and truer to the taste.

    `avoid` and `dislikes` push away, the harder the larger. `temperature` scales the noise that seeds start from: 0
    gives one and the same safest seed, 1 the model's own spread, above 1 wilder. `interval` is the range of noise
    levels in which weights other than 1 act (Kynkaanniemi et al. 2024, arXiv 2404.07724); 0 is data, 1 noise.
    """

    likes: float = 1.5
    dislikes: float = 1.0
    text: float = 1.0
    image: float = 1.0
    audio: float = 1.0
    avoid: float = 1.0
    temperature: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        lo, hi = self.interval
        if self.temperature < 0 or not 0 <= lo <= hi <= 1:
            raise ValueError(
                f"Dials need temperature >= 0 and 0 <= interval[0] <= interval[1] <= 1, "
                f"not temperature={self.temperature}, interval={self.interval}"
            )


def branches(given: set[str], dials: Dials, level: float) -> list[tuple[frozenset[str], float]]:
    """Which subsets of the given conditions to evaluate at this noise level, and their coefficients (they sum to 1)."""
    joint = frozenset(kind for kind in given if getattr(dials, kind) != 0)
    lo, hi = dials.interval
    extra = {}
    if lo <= level <= hi:
        extra = {kind: getattr(dials, kind) - 1 for kind in KINDS if kind in joint and getattr(dials, kind) != 1}
    plan = [(joint, 1 + sum(extra.values()))] + [(joint - {kind}, -weight) for kind, weight in extra.items()]
    return [(subset, weight) for subset, weight in plan if weight != 0]
