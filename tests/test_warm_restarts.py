"""AdamWR and SGDWR, as examples/warm_restarts.py writes them.

- each equals Algorithms 1 and 2 of arXiv 1711.05101 with the restarts of its Appendix B, in
  float64, over three cycles;
- the example runs, its accuracy grows over the cycles, is no higher in the end than
  without restarts, and the picture is there.
"""

import numpy as np
import pytest
import warm_restarts

from tests import helpers, reference
from tests.helpers import path_of

CYCLES = (1, 2, 4)
EPOCH = warm_restarts.EPOCH
STEPS = sum(CYCLES) * EPOCH


def appendix_b(t):
    """Equation 15, and λ = λ_norm·√(b/(B·Tᵢ)) with BTᵢ/b the steps of the cycle."""
    for steps in (n * EPOCH for n in CYCLES):
        if t < steps:
            return 0.5 + 0.5 * np.cos(np.pi * t / steps), warm_restarts.NORM / steps**0.5
        t -= steps
    raise AssertionError


@pytest.mark.parametrize(
    ("make", "direction"),
    [
        (warm_restarts.adamwr, reference.adam),
        (warm_restarts.sgdwr, lambda gradients: reference.trace(gradients, 0.9)),
    ],
    ids=["AdamWR", "SGDWR"],
)
def test_recipes(make, direction, x64):
    peak, hessian = 0.1, np.array([0.5, 1.0, 2.0])
    noise = np.random.default_rng(0).normal(size=(STEPS, 3))
    optimizer, start = make(peak, CYCLES), np.array([1.0, -2.0, 3.0])

    got = path_of(optimizer, start, noise, lambda p, n: hessian * p + n)
    want = reference.train(
        start,
        [lambda p, n=n: hessian * p + n for n in noise],
        direction,
        lambda t: peak * appendix_b(t)[0],
        lambda t: 0.0,
        lambda t: np.prod(appendix_b(t)),
    )
    # Optax's schedules are float32, also under x64
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_each_restart_is_hot_and_has_its_own_decay():
    eta, lam = warm_restarts.restarts(0.3, CYCLES)
    for t in range(STEPS):
        s, decay = appendix_b(t)
        np.testing.assert_allclose([eta(t), lam(t)], [0.3 * s, decay], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_example(tmp_path, capsys, monkeypatch):
    drawn = helpers.pictures(monkeypatch, warm_restarts)
    accuracy = warm_restarts.main(["--quick", "--out", str(tmp_path)])
    assert "λ of that cycle" in capsys.readouterr().out
    assert (tmp_path / "warm_restarts.png").stat().st_size > 10_000
    (picture,) = drawn
    assert picture.get_suptitle()
    alone = {"no restarts", "AdamW, no restarts", "SGDW, no restarts"}
    assert alone | {"with restarts", "restart", "AdamWR", "SGDWR"} == helpers.named(picture)
    assert accuracy["AdamWR"][-1] > 0.88
    for name in ("AdamWR", "SGDWR"):
        assert np.all(np.diff(accuracy[name]) > 0.02)
        # On these seeds a restart costs 0.3 and 6.5 points beside one long cosine.
        assert accuracy[name][-1] < accuracy[f"{name[:-1]}, no restarts"][-1] + 0.01
