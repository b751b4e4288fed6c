"""Runs a codebase's step in NumPy and ours beside it, in float64 from one start.

A client writes down its leaves as a table, from the path to

    (shape, theirs)                      where `masks.standard()` decides as they do
    (shape, theirs, standard, reason)    where it does not; None is undecided, an error

and its step as a generator: `trajectory(path, theta, gradients)` yields one leaf's values
after every step.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optwd import masks

STEPS = 50


def shapes(leaves):
    return {path: row[0] for path, row in leaves.items()}


def theirs(leaves):
    return {path: row[1] for path, row in leaves.items()}


def standard(leaves):
    """What `masks.standard()` must decide; a row with a reason must be a difference."""
    for path, row in leaves.items():
        assert len(row) == 2 or (row[1] is not row[2] and row[3]), path
    return {path: row[min(len(row), 3) - 1] for path, row in leaves.items()}


def tree(leaves, only=None):
    """Parameters as nested dicts; `only` a few of them, where a step is compiled."""
    rng, root = np.random.default_rng(0), {}
    for path, shape in shapes(leaves).items():
        if only is not None and path not in only:
            continue
        node, (*parents, name) = root, path.split("/")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = rng.normal(size=shape)
    return root


def paths(params):
    """The paths of the leaves, in the order of `jax.tree.leaves`."""
    return [leaf.path for leaf, *_ in masks.explain(None, params)]


def decisions(mask, params):
    """What the mask decides for every leaf: a bool, a multiplier, None for undecided."""
    rows = masks.explain(mask, params)
    return {leaf.path: bool(k) if k in (0, 1) else k for leaf, k, _ in rows}


def schedule(table):
    """A table as a schedule; Optax's own are float32 even under x64."""
    return lambda step: jnp.asarray(table)[step]


def cosine(peak, *, start=0.0, end=0.0, warmup=10, steps=STEPS + 1):
    """A linear warm-up from `start`, then half a cosine to `end`."""
    t = np.arange(steps)
    falling = 0.5 * (1 + np.cos(np.pi * (t - warmup) / (steps - warmup)))
    return np.where(
        t < warmup, start + (peak - start) * t / warmup, end + (peak - end) * falling
    )


def largest_difference(optimizer, params, trajectory, *, max_norm=None):
    """Over all leaves and `STEPS` steps; `max_norm` clips the reference's gradients."""
    start = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    assert all(leaf.dtype == np.float64 for leaf in start)
    rng = np.random.default_rng(1)
    gradients = [rng.normal(size=(STEPS, *leaf.shape)) for leaf in start]
    seen = _run(optimizer, params, gradients)

    if max_norm is not None:
        norms = np.sqrt(sum((g.reshape(STEPS, -1) ** 2).sum(1) for g in gradients))
        assert (norms > max_norm).all()
        gradients = [
            np.stack([g * (max_norm / norm) for g, norm in zip(gs, norms, strict=True)])
            for gs in gradients
        ]
    difference = 0.0
    for path, theta, gs, ours in zip(paths(params), start, gradients, seen, strict=True):
        expected = np.stack(list(trajectory(path, theta, gs)))
        difference = max(difference, np.abs(ours - expected).max())
    return difference


def _run(optimizer, params, gradients):
    """The leaves after every step, each with the steps as its first axis."""

    @jax.jit
    def step(params, state, gradients):
        gradients = jax.tree.unflatten(jax.tree.structure(params), gradients)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = jax.jit(optimizer.init)(params), []
    for t in range(STEPS):
        params, state = step(params, state, [g[t] for g in gradients])
        seen.append(jax.tree.leaves(params))
    return [np.stack(leaf) for leaf in zip(*seen, strict=True)]
