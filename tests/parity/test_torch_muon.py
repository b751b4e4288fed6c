"""torch's Muon, beside the line that does it here.

- With either factor for the shape, 50 steps in float64 under a falling learning rate end
  where the equations of `tests/test_conventions_rows.py` do, and so our lines.
"""

import numpy as np
import pytest

from tests.test_conventions_rows import LAM, LEAVES, LR, ROWS, T

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(
    ("name", "adjust"), [("torch.Muon", "original"), ("moonlight.Muon", "match_rms_adamw")]
)
def test_fifty_steps(name, adjust, monkeypatch):
    # torch orthogonalizes in bfloat16
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda self: self.clone())
    rng = np.random.default_rng(0)
    for shape, _ in LEAVES.values():
        start, gradients = rng.normal(size=shape), rng.normal(size=(T, *shape))
        p = torch.nn.Parameter(torch.tensor(start))
        muon = torch.optim.Muon([p], weight_decay=LAM, adjust_lr_fn=adjust)
        for eta, g in zip(LR, gradients, strict=True):
            muon.param_groups[0]["lr"] = float(eta)
            p.grad = torch.tensor(g)
            muon.step()
        *_, end = ROWS[name][1]("", start, gradients)
        # torch divides by max(norm, 1e-7), Moonlight by norm + 1e-7
        atol = 1e-12 if name == "torch.Muon" else 1e-6
        np.testing.assert_allclose(p.detach().numpy(), end, rtol=0, atol=atol)
