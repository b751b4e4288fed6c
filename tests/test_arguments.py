"""Arguments that nothing else would miss: `arguments.py` says which.

- the equilibria and the planners' table by their formulas, with every way of scaling.
"""

import math

import numpy as np
import pytest

from optwd import rates

ETA, LAM, PEAK = 0.05, 0.02, 0.1
RHO = {"learning_rate": ETA * LAM, "schedule": LAM * ETA / PEAK, "nothing": LAM}


@pytest.mark.parametrize("scaled_by", RHO)
@pytest.mark.parametrize("b", [0.9, 0.5])
def test_equilibria_by_their_formulas(scaled_by, b):
    """Of the power series of the weights, θ = −Σ aᵏ Σ bʲ(1 − b) η g, summed far enough."""
    rho = RHO[scaled_by]
    how = {"scaled_by": scaled_by}
    how |= {"peak_learning_rate": PEAK} if scaled_by == "schedule" else {}
    # the share of a gradient in the weights k steps later, and its square summed
    k = np.arange(200_000)
    share = (1 - b) * ((1 - rho) ** (k + 1) - b ** (k + 1)) / (1 - rho - b)
    variance = np.sum(share**2)
    rms = rates.equilibrium_rms(ETA, LAM, b, **how)
    assert rms == pytest.approx(ETA * variance**0.5, rel=1e-9)
    correlation = np.sum(share[1:] * share[:-1]) / variance  # of θ with the next θ
    angle = rates.equilibrium_angle(ETA, LAM, b, **how)
    assert angle == pytest.approx(math.acos(correlation), rel=1e-6)
    sgd = rates.sgd_equilibrium_rms(ETA, LAM, b, 0.3, **how)
    assert sgd == pytest.approx((ETA * 0.3) ** 0.5 * (variance / (1 - b) ** 2) ** 0.25)
    for within, power in ((0.05, 2), (0.1, 4)):
        steps = rates.equilibrium_steps(2, ETA, LAM, within=within, power=power, **how)
        left = (2**power - 1) * (1 - rho) ** (power * steps)
        assert left == pytest.approx((1 + within) ** power - 1)
    # on the sphere: θ' = θ − η_s d, its norm kept, has the same angle; d lags as b says
    sphere = rates.sphere_learning_rate(ETA, LAM, b, **how)
    a = 1 - rho
    assert sphere == pytest.approx(
        math.sqrt((1 - a * a) * (1 - a * b) / (1 + a * b)) / a, rel=1e-12
    )
