"""The path from noise to item vectors, the training objective, and the sampler.

Vectors live on the sphere of radius sqrt(D), where standard normal noise lives too. A noisy vector is
alpha * x0 + sigma * noise with alpha^2 + sigma^2 = 1. In high dimension x0 and the noise are orthogonal but for
O(1/sqrt(D)), so this is the great circle (slerp) between them; and it is the straight path of flow matching (Lipman et
al. 2023) up to a rescaling of each point, so the two differ only in how the levels are spaced (Kingma & Gao 2023).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def levels(u: Tensor, shift: float) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) at u in [0, 1], 0 data and 1 noise; sigma / alpha = shift * u / (1 - u).

    `shift` > 1 spends more of u near noise (Esser et al. 2024, section 5.3.2): among vectors in D dimensions a taste is
    chosen when alpha * sqrt(D) is about 1, which is nearly pure noise.
    """
    alpha, sigma = 1 - u, shift * u
    norm = (alpha.square() + sigma.square()).sqrt()
    return alpha / norm, sigma / norm


def denoised(correction: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Estimate of x0 from the network's output: the preconditioning of Karras et al. 2022, section 5, on this path."""
    return alpha * x + sigma * correction


def joint_noise(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """n noises [n, D], each standard normal, orthogonal within blocks of D, so that a set of seeds differs.

    Orthogonal random features (Yu et al. 2016, section 3): every single noise is distributed as if drawn alone.
    """
    blocks = []
    for start in range(0, n, dim):
        directions, triangle = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
        directions = directions * triangle.diagonal().sign()
        lengths = torch.randn(dim, dim, generator=generator).norm(dim=1)
        blocks.append((directions.T * lengths[:, None])[: n - start])
    return torch.cat(blocks) if blocks else torch.empty(0, dim)


def integrate(
    estimate: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, shift: float, start: float = 1.0
) -> Tensor:
    """Follow the flow from x at level `start` to data in `steps` steps; deterministic.

    estimate(x, u) gives x0. Each step keeps the noise that x and an estimate imply and lowers its level (DDIM, Song et
    al. 2021, section 4.1). The estimate is carried on along its change since the step before, which makes the solver
    one of second order at no further estimate (DPM-Solver++, Lu et al. 2022, section 3.2, its multistep solver); but
    for the first step and for the last, which ends on what was estimated.
    """
    grid = torch.linspace(start, 0, steps + 1)
    alphas, sigmas = levels(grid, shift)
    clearness = (alphas / sigmas).log()  # from -inf, pure noise, to inf, data
    before = None
    for i in range(steps):
        x0 = estimate(x, float(grid[i]))
        ahead = x0
        if before is not None and i + 1 < steps:
            gained, to_gain = clearness[i] - clearness[i - 1], clearness[i + 1] - clearness[i]
            ahead = x0 + to_gain / (2 * gained) * (x0 - before)
        kept = sigmas[i + 1] / sigmas[i]
        x = kept * x + (alphas[i + 1] - kept * alphas[i]) * ahead
        before = x0
    return x


def representatives(x: Tensor, n: int) -> Tensor:
    """The n of the vectors x [B, M, D] of each person that together stand for all M, most telling first -> [B, n, D]

    Support points (Mak & Joseph 2018, section 2): few points whose energy distance to a sample is small. They are found
    one by one, as in kernel herding (Chen, Welling & Smola 2010): each is near to all, and far from those found before.
    """
    far = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # [B, M, M]
    worth = -far.mean(dim=2)
    from_found, found = torch.zeros_like(worth), []
    for place in range(n):
        best = (worth + from_found / (place + 1)).argmax(dim=1, keepdim=True)  # [B, 1]
        found.append(best)
        worth = worth.scatter(1, best, -torch.inf)
        from_found = from_found + far.gather(1, best.unsqueeze(2).expand(-1, -1, far.shape[2])).squeeze(1)
    return x.gather(1, torch.cat(found, dim=1).unsqueeze(2).expand(-1, -1, x.shape[2]))


def asked_for(x: Tensor, pull: Tensor, chance: Tensor, concentration: float = 12.0) -> Tensor:
    """Of the drafts x [B, n, M, D] (unit length) of each dream the one that suits what is asked for, moved toward it by
    pull [B, D] -> [B, n, D], unit length

    Dreams stand for a density, a von Mises-Fisher kernel around each. What is asked for is one more factor of the same
    form, exp(concentration * pull . x), and the product of both is again such a density: the kernel around x is now
    around x + pull and weighs exp(concentration * |x + pull|). A draft is drawn by that weight: it has the largest
    sum of the weight's logarithm and of Gumbel noise, made from uniform numbers `chance` [B, n, M] (Maddison et al.
    2014, "A* Sampling", section 2). The largest noise is given to the first draft, which stays unless the pull speaks
    for another: where nothing pulls, nothing changes.
    """
    noise = -(-chance.log()).log()
    moved = x + pull[:, None, None]
    length = moved.norm(dim=-1)  # [B, n, M]
    largest = noise.argmax(dim=-1, keepdim=True)
    swapped = noise.scatter(-1, largest, noise[..., :1])
    swapped[..., :1] = noise.gather(-1, largest)
    best = (concentration * length + swapped).argmax(dim=-1)[..., None, None]  # [B, n, 1, 1]
    return torch.nn.functional.normalize(moved.take_along_dim(best, dim=2).squeeze(2), dim=-1)
