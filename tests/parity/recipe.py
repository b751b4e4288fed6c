"""One run for every framework: the same start, gradients and schedules on both sides."""

import importlib
import importlib.util
import os
import sys
import types
import warnings
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd

STEPS = 60
LR, WD = 0.02, 0.3
SHAPES = {"kernel": (4, 3), "bias": (3,), "conv": (2, 3, 2, 2), "scale": ()}
RNG = np.random.default_rng(0)
START = {k: RNG.normal(size=s) for k, s in SHAPES.items()}
# Large at first, so that what is remembered (a maximum) differs from what is seen.
NOISE = {k: RNG.normal(size=(STEPS, *s)) for k, s in SHAPES.items()}
for noise in NOISE.values():
    noise[STEPS // 2 :] *= 0.1

COSINE = LR * 0.5 * (1 + np.cos(np.arange(STEPS) / STEPS * np.pi))  # begins at LR
WARM = COSINE * np.minimum((np.arange(STEPS) + 1) / 10, 1)
FALLING = np.linspace(WD, WD / 3, STEPS)


def gradient(k, p, t):
    return 0.3 * p + NOISE[k][t]


def schedule(table):
    """A table as a schedule; Optax's own are float32 even under x64."""
    return lambda t: jnp.asarray(table)[t]


def ours(optimizer, dtype=np.float64):
    """The parameters after every step."""
    params = {k: jnp.asarray(v, dtype) for k, v in START.items()}
    state, seen = optimizer.init(params), []

    @jax.jit
    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    for t in range(STEPS):
        gradients = {
            k: jnp.asarray(gradient(k, np.asarray(p), t), dtype) for k, p in params.items()
        }
        params, state = step(params, state, gradients)
        seen.append({k: np.asarray(p) for k, p in params.items()})
    return seen


def load(name, *absent):
    """A module of a package whose own ``__init__`` needs more than is installed.

    Nothing of the package runs but that module and its siblings; `absent` are modules that
    it imports and whose contents the optimizer does not use.
    """
    *parents, _ = name.split(".")
    spec = importlib.util.find_spec(parents[0])
    if spec is None:
        pytest.skip(f"{parents[0]} is not installed", allow_module_level=True)
    folder, known = spec.submodule_search_locations[0], dict(sys.modules)
    try:
        for i in range(len(parents)):
            path = ".".join(parents[: i + 1])
            sys.modules[path] = module = types.ModuleType(path)
            module.__path__ = [os.path.join(folder, *parents[1 : i + 1])]
        sys.modules.update({path: mock.MagicMock() for path in absent})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not ours to heed
            return importlib.import_module(name)
    finally:
        for path in set(sys.modules) - set(known):
            if path.startswith(parents[0]):
                del sys.modules[path]


def torch_run(
    torch, make, tables=None, groups=None, dtype=np.float64, options="param_groups"
):
    """The same with a torch optimizer; `tables` are set in its groups before each step.

    `groups` are lists of names, each with the options of its group.
    """
    tensors = {
        k: torch.nn.Parameter(torch.tensor(v.astype(dtype))) for k, v in START.items()
    }
    if groups is None:
        optimizer = make(list(tensors.values()))
    else:
        optimizer = make(
            [{**o, "params": [tensors[k] for k in names]} for names, o in groups]
        )
    seen = []
    for t in range(STEPS):
        for name, table in (tables or {}).items():
            for group in getattr(optimizer, options):
                group[name] = float(table[t])
        for k, p in tensors.items():
            p.grad = torch.tensor(gradient(k, p.detach().numpy(), t).astype(dtype))
        optimizer.step()
        seen.append({k: p.detach().numpy().copy() for k, p in tensors.items()})
    return seen


def every(tensors, wd):
    """One group of all."""
    return [{"params": list(tensors.values())}]


def torch_loop(
    torch, optimizer, groups=every, *, options="param_groups", begin=None, **fixed
):
    """What turns an optimizer of torch into something that `optwd.audit` can run.

    `begin` is what the optimizer asks for before its first step.
    """

    def make(lr, wd):
        rate = lr if callable(lr) else lambda t: lr

        def init(params):
            tensors = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in params.items()}
            theirs = optimizer(groups(tensors, wd), lr=rate(0), weight_decay=wd, **fixed)
            if begin:
                begin(theirs)
            return tensors, theirs, 0

        def step(params, gradients, state):
            tensors, theirs, t = state
            for group in getattr(theirs, options):
                group["lr"] = rate(t)
            for k, tensor in tensors.items():
                tensor.data.copy_(torch.tensor(params[k]))
                tensor.grad = torch.tensor(gradients[k])
            theirs.step()
            new = {k: v.detach().numpy().copy() for k, v in tensors.items()}
            return new, (tensors, theirs, t + 1)

        return optwd.Loop(init, step)

    return make


def difference(a, b):
    """The largest, over all steps and leaves."""
    return max(np.abs(x[k] - y[k]).max() for x, y in zip(a, b, strict=True) for k in x)


def assert_equal(a, b, tolerance=1e-12):
    assert len(a) == len(b) == STEPS
    got = difference(a, b)
    print(f"{got:.1e} over {len(a)} steps")
    assert got <= tolerance
