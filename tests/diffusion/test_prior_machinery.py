"""Same seed, same seeds; batches equal singles; killed runs end like undisturbed ones; errors say what and where."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from diffusion.examples import Examples
from diffusion.flow import asked_for, integrate, joint_noise, levels, representatives
from diffusion.guidance import Dials, branches
from diffusion.network import Denoiser, PriorConfig
from diffusion.prior import Conditions, Prior
from diffusion.regression import RegressionPrior, train_regression
from diffusion.training import train_prior

TINY = PriorConfig(
    width=32, targets=4, depth=2, heads=2, context_width=16, max_history=8, batch_size=16, steps=12, checkpoint_every=5
)


def data(people: int = 12, items: int = 40, dim: int = 16) -> tuple[list[np.ndarray], list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    histories = [rng.choice(items, rng.integers(1, 12), replace=False) for _ in range(people)]
    preferences = [rng.choice([1.0, 0.5, -1.0], len(h)).astype(np.float32) for h in histories]
    return histories, preferences, vectors


@pytest.fixture(scope="module")
def lively() -> Prior:
    """A network with random weights everywhere, so that whatever leaks between people shows."""
    torch.manual_seed(0)
    network = Denoiser(replace(TINY, dim=16))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Prior(network)


def some(people: int = 6) -> Conditions:
    histories, preferences, vectors = data(people)
    rng = np.random.default_rng(1)
    steers = {name: rng.standard_normal((people, 16)).astype(np.float32) for name in ("text", "avoid")}
    steers["text"][1:2] = 0
    return Conditions.from_histories(histories, preferences, vectors, **steers)


def only(conditions: Conditions, row: int, padding: int = 0) -> Conditions:
    """One person of the batch, without the padding that the others needed, or with more."""
    start = conditions.mask[row].argmax()

    def grown(x: np.ndarray) -> np.ndarray:
        x = x[row : row + 1, start:]
        return np.concatenate([np.ones_like(x[:, :1]).repeat(padding, 1) * (x.dtype != bool), x], 1).astype(x.dtype)

    return Conditions(
        grown(conditions.history), grown(conditions.preferences), grown(conditions.mask),
        text=conditions.text[row : row + 1], avoid=conditions.avoid[row : row + 1],
    )  # fmt: skip


def test_a_person_gets_the_same_alone_in_a_crowd_and_again(lively: Prior) -> None:
    conditions, dials = some(), Dials(likes=2, dislikes=0.5, text=1.5, avoid=3)
    seeds = lively.sample(conditions, 5, dials=dials, seed=3)
    assert seeds.shape == (6, 5, 16)
    assert seeds.dtype == np.float32
    np.testing.assert_array_equal(seeds, lively.sample(conditions, 5, dials=dials, seed=3))
    for row in range(6):
        for padding in (0, 3):
            alone = lively.sample(only(conditions, row, padding), 5, dials=dials, seed=3)
            np.testing.assert_allclose(alone[0], seeds[row], atol=1e-5)
    assert np.abs(seeds - lively.sample(conditions, 5, dials=dials, seed=4)).max() > 0.1
    assert np.abs(seeds[0] - seeds[1]).max() > 0.1


def test_representatives_stand_for_all_better_than_the_first_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(16)[:3] * torch.tensor([[6.0], [6.0], [6.0]])
    group = torch.tensor([0] * 40 + [1] * 15 + [2] * 5)[torch.randperm(60, generator=generator)]
    x = (centres[group] + torch.randn(60, 16, generator=generator))[None]

    def energy_distance(some: torch.Tensor) -> float:
        return float(2 * torch.cdist(some, x[0]).mean() - torch.cdist(some, some).mean())

    chosen = representatives(x, 12)[0]
    draws = [energy_distance(x[0, torch.randperm(60, generator=generator)[:12]]) for _ in range(50)]
    assert energy_distance(chosen) < min(draws)
    counts = torch.cdist(chosen, centres).argmin(dim=1).bincount(minlength=3)
    assert counts.tolist() == [8, 3, 1]  # as the groups are in all
    torch.testing.assert_close(representatives(x, 4)[0], chosen[:4])
    assert len(representatives(x, 60)[0].unique(dim=0)) == 60  # nobody twice


def test_what_is_asked_for_turns_dreams_and_chooses_among_them() -> None:
    generator = torch.Generator().manual_seed(0)
    drafts = torch.nn.functional.normalize(torch.randn(2, 400, 4, 16, generator=generator), dim=-1)
    toward, chance = drafts.new_zeros(16), torch.rand(2, 400, 4, generator=generator)
    toward[0] = 1.0
    still = asked_for(drafts, 0 * toward.expand(2, -1), chance)
    torch.testing.assert_close(still, drafts[:, :, 0])  # nothing pulls, nothing changes
    before = -2.0
    for strength in (0.0, 0.25, 1.0, 4.0):
        dreams = asked_for(drafts, strength * toward.expand(2, -1), chance)
        torch.testing.assert_close(dreams.norm(dim=-1), torch.ones(2, 400))
        likeness = float((dreams @ toward).mean())
        assert likeness > before + 0.1 * (strength > 0)
        before = likeness
    # chosen as the product of densities would have it: a draft that is nearer weighs exp(12 (|a| - |b|)) times as much
    pair = torch.nn.functional.normalize(torch.randn(1, 1, 2, 16, generator=generator), dim=-1)
    pull = 0.5 * toward[None]
    a, b = (pair[0, 0] + pull).norm(dim=-1)
    many = asked_for(pair.expand(1, 20_000, 2, 16), pull, torch.rand(1, 20_000, 2, generator=generator))
    came_second = (many[0] @ pair[0, 0].T).argmax(dim=-1).float().mean()
    # exchangeable drafts: the first has the larger noise, so it stays unless the weight of the second outdoes that
    gap = float(12 * (b - a))
    noise = np.random.default_rng(0).gumbel(size=(200_000, 2))
    expected = (noise.min(axis=1) + gap > noise.max(axis=1)).mean()
    assert float(came_second) == pytest.approx(expected, abs=0.02)


def test_a_steer_leaves_the_network_to_those_who_like_something(lively: Prior) -> None:
    """Who has a taste is moved by a steer afterwards; for who likes nothing yet it is all the network is told."""
    conditions = some()
    conditions.avoid = None
    assert conditions.text is not None
    toward = conditions.text / np.maximum(np.linalg.norm(conditions.text, axis=1, keepdims=True), 1e-9)
    likes = (conditions.mask & (conditions.preferences > 0)).any(axis=1) & toward.any(axis=1)
    assert likes.sum() > 3
    plain, steered = (lively.sample(conditions, 6, dials=Dials(text=w)) for w in (0, 1))
    turned = np.einsum("bnd,bd->bn", steered, toward) - np.einsum("bnd,bd->bn", plain, toward)
    assert (turned.mean(axis=1)[likes] > 0.3).all()
    stranger = Conditions(conditions.history[:, :0], conditions.preferences[:, :0], conditions.mask[:, :0], text=toward)
    told, silent = lively.sample(stranger, 6), lively.sample(replace(stranger, text=None), 6)
    assert np.abs(told - silent).max() > 0.01
    ignored = lively.sample(conditions, 6, dials=Dials(likes=0, dislikes=0))
    np.testing.assert_allclose(ignored, told, atol=1e-5)


def test_memory_bound_changes_nothing(lively: Prior, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lively.sample(some(), 4)
    monkeypatch.setattr("diffusion.prior.ROWS_AT_ONCE", 8)
    np.testing.assert_allclose(lively.sample(some(), 4), whole, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16])
def test_any_number_of_steps_gives_unit_vectors(lively: Prior, steps: int) -> None:
    seeds = lively.sample(some(), 3, steps=steps)
    np.testing.assert_allclose(np.linalg.norm(seeds, axis=-1), 1, atol=1e-5)


def test_a_dial_at_zero_equals_never_having_said_it(lively: Prior) -> None:
    conditions, silent = some(), some()
    silent.avoid = None
    said, unsaid = (lively.sample(c, 4, dials=Dials(likes=1)) for c in (conditions, silent))
    np.testing.assert_allclose(lively.sample(conditions, 4, dials=Dials(likes=1, avoid=0)), unsaid, atol=1e-5)
    np.testing.assert_allclose(lively.sample(conditions, 4, dials=Dials(likes=1, avoid=1e-4)), unsaid, atol=1e-2)
    assert np.abs(said - unsaid).max() > 0.05


def test_order_counts_only_where_it_is_known(lively: Prior) -> None:
    conditions = some()
    backwards = [x[:, ::-1].copy() for x in (conditions.history, conditions.preferences, conditions.mask)]
    reversed_ = Conditions(*backwards)
    conditions.text = conditions.avoid = None
    assert np.abs(lively.sample(conditions, 4) - lively.sample(reversed_, 4)).max() > 0.01
    conditions.ordered = reversed_.ordered = False
    np.testing.assert_allclose(lively.sample(conditions, 4), lively.sample(reversed_, 4), atol=1e-5)


def test_guidance_evaluates_only_what_it_needs() -> None:
    given = {"likes", "text", "avoid"}
    everything = frozenset(given)
    assert branches(given, Dials(likes=1), 0.5) == [(everything, 1)]
    assert branches(given, Dials(likes=1, text=0), 0.5) == [(frozenset({"likes", "avoid"}), 1)]
    assert branches({"likes"}, Dials(likes=3, image=5), 0.5) == [(frozenset({"likes"}), 3), (frozenset(), -2)]
    both = dict(branches(given, Dials(likes=1, text=2, avoid=1.5), 0.5))
    assert both == {everything: 2.5, everything - {"text"}: -1, everything - {"avoid"}: -0.5}
    assert branches(given, Dials(likes=1, text=2, interval=(0.6, 1)), 0.5) == [(everything, 1)]
    assert branches(set(), Dials(likes=4), 0.5) == [(frozenset(), 1)]


def test_the_path_keeps_the_sphere_and_ends_in_data_and_noise() -> None:
    alpha, sigma = levels(torch.linspace(0, 1, 11), 4.0)
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(11))
    assert (alpha[0], sigma[0], alpha[-1], sigma[-1]) == (1, 0, 0, 1)
    assert (alpha.diff() < 0).all()


def test_the_flow_of_a_normal_distribution_is_followed_with_second_order() -> None:
    """Where data are normal around m with deviation c, the estimate is known, and noise e must end in m + c e."""
    m, c = torch.linspace(-2, 2, 16, dtype=torch.float64), 0.5
    noise = torch.randn(200, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def estimate(x: torch.Tensor, u: float) -> torch.Tensor:
        alpha, sigma = levels(torch.tensor(u, dtype=torch.float64), 3.0)
        return (alpha * c**2 * x + sigma**2 * m) / (alpha**2 * c**2 + sigma**2)

    def error(steps: int, start: float = 1.0) -> float:
        alpha, sigma = levels(torch.tensor(start, dtype=torch.float64), 3.0)
        x = alpha * m + (alpha**2 * c**2 + sigma**2).sqrt() * noise
        return float((integrate(estimate, x, steps, 3.0, start) - (m + c * noise)).norm(dim=1).mean())

    asked = []
    integrate(lambda x, u: asked.append(u) or x, noise, 8, 3.0)
    assert len(asked) == 8
    assert error(16) < 0.15  # Euler's steps: 0.33
    assert error(32) < error(16) / 3  # which a solver of first order halves
    assert error(8, start=0.4) < error(8)


def test_joint_noise_is_orthogonal_and_each_is_standard_normal() -> None:
    noise = joint_noise(40, 16, torch.Generator().manual_seed(0))
    assert noise.shape == (40, 16)
    gram = noise[:16] @ noise[:16].T
    torch.testing.assert_close(gram, torch.diag(gram.diagonal()), atol=1e-4, rtol=0)
    many = torch.cat([joint_noise(16, 16, torch.Generator().manual_seed(i)) for i in range(300)])
    assert many.mean().abs() < 0.02
    torch.testing.assert_close(many.T @ many / len(many), torch.eye(16), atol=0.08, rtol=0)


def weights(prior: Prior | RegressionPrior) -> dict[str, torch.Tensor]:
    return prior.network.state_dict()


def test_training_repeats_and_a_stopped_run_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(train_prior(*data(), TINY, seed=1))
    assert all(torch.equal(whole[k], v) for k, v in weights(train_prior(*data(), TINY, seed=1)).items())
    assert any(not torch.equal(whole[k], v) for k, v in weights(train_prior(*data(), TINY, seed=2)).items())

    def stop(done: int, total: int) -> None:
        assert total == 12
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_prior(*data(), TINY, seed=1, checkpoint_dir=tmp_path, progress=stop)
    done: list[int] = []
    resumed = train_prior(*data(), TINY, seed=1, checkpoint_dir=tmp_path, progress=lambda i, _: done.append(i))
    assert done[0] == 6  # after the checkpoint at 5, not from the start
    assert all(torch.equal(whole[k], v) for k, v in weights(resumed).items())
    with pytest.raises(ValueError, match="other data, options, precision or seed"):
        train_prior(*data(), TINY, seed=2, checkpoint_dir=tmp_path)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="other data, options, precision or seed"):
        train_prior(*data(), TINY, seed=1, checkpoint_dir=tmp_path)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_killed_process_resumes_to_the_same_weights(tmp_path: Path) -> None:
    script = f"""
import os, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from pathlib import Path
from test_prior_machinery import TINY, data
from diffusion.training import train_prior
train_prior(*data(), TINY, seed=1, checkpoint_dir=Path({str(tmp_path)!r}),
            progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL) if done == 7 else None)
"""
    killed = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=240)
    assert killed.returncode == -signal.SIGKILL
    resumed = weights(train_prior(*data(), TINY, seed=1, checkpoint_dir=tmp_path))
    whole = weights(train_prior(*data(), TINY, seed=1))
    for name, value in whole.items():  # another process may use another number of threads
        torch.testing.assert_close(resumed[name], value, atol=1e-6, rtol=1e-5)


def test_saved_and_loaded_is_the_same(tmp_path: Path, lively: Prior) -> None:
    lively.save_pretrained(tmp_path / "prior")
    assert sorted(p.name for p in (tmp_path / "prior").iterdir()) == ["config.json", "model.safetensors"]
    again = Prior.from_pretrained(tmp_path / "prior")
    np.testing.assert_array_equal(again.sample(some(), 3), lively.sample(some(), 3))
    with pytest.raises(ValueError, match="RegressionPrior"):
        RegressionPrior.from_pretrained(tmp_path / "prior")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        Prior.from_pretrained(tmp_path / "nowhere")


def test_regression_predicts_one_unit_vector_whoever_else_is_asked() -> None:
    regression = train_regression(*data(), TINY)
    mean = regression.predict(some())
    assert mean.shape == (6, 16)
    np.testing.assert_allclose(np.linalg.norm(mean, axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(regression.predict(only(some(), 2))[0], mean[2], atol=1e-5)


def test_examples_keep_targets_liked_unseen_and_away_from_what_is_avoided() -> None:
    histories, preferences, vectors = data()
    liked = {i for h, p in zip(histories, preferences, strict=True) for i in h[p > 0]}
    examples = Examples(histories, preferences, vectors, replace(TINY, dim=16, batch_size=200))
    rng = np.random.default_rng(0)
    lengths, steered, disliked = set(), np.zeros(4), 0
    for _ in range(600):
        person = int(rng.integers(len(examples.histories)))
        history, rated, _, steers, targets = examples._example(person, rng)
        assert set(targets) <= liked
        assert not set(targets) & set(history[rated > 0])
        lengths.add(len(history))
        steered += steers.any(1)
        disliked += int((rated < 0).any())
        if steers[3].any():
            assert (vectors[targets] @ steers[3]).max() < 0.95
    assert {0, 1, 2, 3} <= lengths
    assert (steered > 30).all()
    assert disliked > 60
    conditions, ordered, targets = examples.batch(4)
    assert targets.shape == (200, 4)
    assert 0 < ordered.mean() < 1
    np.testing.assert_array_equal(conditions.history, examples.batch(4)[0].history)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, p, v: (h[:-1], p, v), "one for each person"),
        (lambda h, p, v: ([*h[:-1], np.array([99])], [*p[:-1], np.ones(1)], v), "history 11 names items outside"),
        (lambda h, p, v: (h, [np.ones(len(x) + 1) for x in p], v), "history 0 has"),
        (lambda h, p, v: (h, [-np.ones(len(x)) for x in p], v), "no history holds a liked item"),
        (lambda h, p, v: (h, p, v * 2), "must have length 1"),
    ],
)
def test_data_that_do_not_fit_are_refused(change, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        train_prior(*change(*data()), TINY)


def test_conditions_and_dials_that_do_not_fit_are_refused(lively: Prior) -> None:
    wrong = some()
    wrong.text = wrong.text[:, :3]
    with pytest.raises(ValueError, match=r"Conditions\.text must be \(6, 16\)"):
        lively.sample(wrong, 2)
    wrong = some()
    wrong.history[2, -1, 0] = np.nan
    with pytest.raises(ValueError, match="finite"):
        lively.sample(wrong, 2)
    with pytest.raises(ValueError, match="n >= 1"):
        lively.sample(some(), 0)
    with pytest.raises(ValueError, match="temperature"):
        Dials(temperature=-1)
    with pytest.raises(ValueError, match=r"PriorConfig\.dim is 8"):
        train_prior(*data(), replace(TINY, dim=8))
    with pytest.raises(ValueError, match="steers"):
        train_prior(*data(), TINY, steers={"smell": data()[2]})


def test_importing_the_package_does_not_load_torch() -> None:
    subprocess.run([sys.executable, "-c", "import diffusion, sys; assert 'torch' not in sys.modules"], check=True)
