"""nanochat: cautious decay on Muon's matrices, and AdamW with a λ for each other group.

- 50 steps agree with NumPy to 1e-12. The matrices' λ falls to 0 along a cosine, and is
  scaled by the learning rate *and* by the factor for a matrix's shape.
- `masks.standard()` decays the same matrices; the differences elsewhere, leaf by leaf.

From karpathy/nanochat at 92d63d4: nanochat/optim.py, nanochat/gpt.py (`setup_optimizer`),
scripts/base_train.py (λ is 0.28·√(B/B_ref)·D_ref/D at first). Its leaves are torch's: a
weight is (out, in), as in Equinox, and its module's class says what it is. The direction
before the decay (NorMuon after MuonEq and Polar Express) is one function for both sides
here: what is compared is the decay, its place, and AdamW.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import decay, masks
from tests import reference
from tests.clients import common

pytestmark = pytest.mark.usefixtures("x64")

T = common.STEPS
LRM = np.minimum(1.0, (T - np.arange(T)) / 20)  # constant, then linearly to 0
MATRIX_LR = 0.02 * LRM
MATRIX_WD = 0.28 * 0.5 * (1 + np.cos(np.pi * np.arange(T) / T))

D, V = 8, 12
SCALE = (D / 768) ** -0.5
GROUPS = {  # learning rate, b1, b2, λ
    "lm_head": (0.004 * SCALE, 0.8, 0.96, 0.01),
    "wte": (0.2 * SCALE, 0.8, 0.995, 0.001),
    "value_embeds": (0.1 * SCALE, 0.8, 0.995, 0.01),
    "resid": (0.005, 0.8, 0.95, 0.05),
    "x0": (0.5, 0.96, 0.95, 0.0),
    "smear": (0.2, 0.8, 0.95, 0.0),  # and backout
}

EMBEDDING = "they decay all but the last scalars; a rare row learns at few steps"
LAYERS = "one scalar per layer; theirs pulls the residual stream to 0"
GATE = "a Linear of one row, which they count among the scalars"
BLOCK = "transformer/h/0"
LEAVES = {
    "transformer/wte/weight": ((V, D), True, False, EMBEDDING),
    f"{BLOCK}/attn/c_q/weight": ((D, D), True),
    f"{BLOCK}/attn/c_k/weight": ((D // 2, D), True),
    f"{BLOCK}/attn/c_v/weight": ((D // 2, D), True),
    f"{BLOCK}/attn/c_proj/weight": ((D, D), True),
    f"{BLOCK}/attn/ve_gate/weight": ((2, 4), True),
    f"{BLOCK}/mlp/c_fc/weight": ((4 * D, D), True),
    f"{BLOCK}/mlp/c_proj/weight": ((D, 4 * D), True),
    "lm_head/weight": ((V, D), True),
    "value_embeds/0/weight": ((V, D // 2), True, False, EMBEDDING),
    "resid_lambdas": ((1,), True, False, LAYERS),
    "x0_lambdas": ((1,), False),
    "smear_gate/weight": ((1, 4), False, True, GATE),
    "smear_lambda": ((1,), False),
    "backout_lambda": ((1,), False),
}
RUN = LEAVES.keys() - {f"{BLOCK}/attn/{name}/weight" for name in ("c_k", "c_v", "c_proj")}


def group(path):
    if path.startswith("transformer/h/"):
        return "matrix"
    return "smear" if "backout" in path else next(name for name in GROUPS if name in path)


POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)


def normuon(g, momentum, variance, xp):
    """The direction of one matrix, and both of its memories after the step."""

    def norm(x, axis=None):
        return xp.sqrt(xp.sum(x**2, axis, keepdims=True))

    rows, columns = g.shape
    momentum = 0.95 * momentum + 0.05 * g
    x = 0.05 * g + 0.95 * momentum
    x = x * norm(x) / math.sqrt(rows) / xp.maximum(norm(x, 1), 1e-6)  # every row alike
    x = x / (norm(x) * 1.01 + 1e-6)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x * math.sqrt(min(rows, columns)) / xp.maximum(norm(x), 1e-6)
    mean = xp.mean(x**2, 1 if rows >= columns else 0, keepdims=True)
    variance = 0.9 * variance + 0.1 * mean
    y = x / xp.sqrt(xp.maximum(variance, 1e-10))
    return y * norm(x) / xp.maximum(norm(y), 1e-10), momentum, variance


def variance_of(theta):
    rows, columns = theta.shape
    return np.zeros((rows, 1) if rows >= columns else (1, columns))


def scale_by_normuon():
    def init(params):
        leaves = jax.tree.leaves(params)
        return [(jnp.zeros_like(p), jnp.asarray(variance_of(p))) for p in leaves]

    def update(updates, state, params=None):
        leaves, treedef = jax.tree.flatten(updates)
        new = [normuon(g, *memory, jnp) for g, memory in zip(leaves, state, strict=True)]
        return treedef.unflatten([y for y, *_ in new]), [tuple(s) for _, *s in new]

    return optax.GradientTransformation(init, update)


def of_shape(theta):
    return max(1, theta.shape[0] / theta.shape[1]) ** 0.5


def ours(params):
    lr = {name: common.schedule(row[0] * LRM) for name, row in GROUPS.items()}
    parts = {
        name: optwd.adamw(lr[name], b1, b2, eps=1e-10, weight_decay=weight_decay)
        for name, (_, b1, b2, weight_decay) in GROUPS.items()
    }
    parts["matrix"] = optax.chain(
        scale_by_normuon(),
        decay.cautious(common.schedule(MATRIX_WD)),
        optax.stateless(lambda u, _: jax.tree.map(lambda x: x * of_shape(x), u)),
        optax.scale_by_learning_rate(common.schedule(MATRIX_LR)),
    )
    labels = [group(path) for path in common.paths(params)]
    return optax.partition(parts, jax.tree.unflatten(jax.tree.structure(params), labels))


def trajectory(path, theta, gradients):
    if group(path) != "matrix":
        lr, b1, b2, weight_decay = GROUPS[group(path)]
        for t, u in enumerate(reference.adam(gradients, b1, b2, 1e-10)):
            theta = theta * (1 - lr * LRM[t] * weight_decay) - lr * LRM[t] * u
            yield theta
        return
    memory = np.zeros_like(theta), variance_of(theta)
    for t, g in enumerate(gradients):
        y, *memory = normuon(g, *memory, np)
        lr = MATRIX_LR[t] * of_shape(theta)
        theta = theta - (lr * y + lr * MATRIX_WD[t] * theta * (y * theta >= 0))
        yield theta


class Linear(eqx.Module):
    """For its name alone."""

    weight: jax.Array


class Embedding(eqx.Module):
    """For its name alone."""

    weight: jax.Array


def port(node, name=""):
    """The tree as an Equinox user has it: a module for every weight."""
    if "weight" in node:
        return (Embedding if name == "embedding" else Linear)(**node)
    names = {"wte": "embedding", "value_embeds": "embedding"}
    return {
        k: port(v, names.get(k, name)) if isinstance(v, dict) else v
        for k, v in node.items()
    }


def test_default():
    params = port(common.tree(LEAVES, RUN))
    assert common.largest_difference(ours(params), params, trajectory) < 1e-12


def test_masks():
    params = port(common.tree(LEAVES))
    assert {path: decays(path) for path in LEAVES} == common.theirs(LEAVES)
    assert common.decisions(masks.standard(), params) == common.standard(LEAVES)


def decays(path):
    return group(path) == "matrix" or GROUPS[group(path)][-1] > 0
