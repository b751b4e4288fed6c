"""The table: one row per leaf, the same every time.

It proves that `tabulate` says which leaves decay, which pattern decided, how fast, and
where rounding would undo it, and which matrices are 0, where `decay.to_norm` does nothing;
that it colours a terminal; that bad arguments name the fix.
"""

import io
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optwd
from optwd import masks, tabulate

PARAMS = {
    "embed": {"embedding": jnp.ones((10, 4), jnp.bfloat16)},
    "head": {"kernel": jnp.ones((4, 2)), "bias": jnp.ones(2)},
    "steps": jnp.ones((), jnp.int32),
}


def test_the_table_in_full():
    mask = masks.multipliers({"head/kernel": 100.0, "**/embedding": 0.1})
    assert tabulate(PARAMS, mask, weight_decay=0.1, learning_rate=1e-3).splitlines() == [
        "leaf             shape    dtype     elements  decay  decided by          "
        "per step  half-life",
        "embed/embedding  (10, 4)  bfloat16        40    0.1  **/embedding        "
        " ! 1e-05     69,314",
        "head/bias        (2,)     float32          2      –  default             "
        "       –          –",
        "head/kernel      (4, 2)   float32          8    100  head/kernel         "
        "    0.01         69",
        "steps            ()       int32            1      –  not floating point  "
        "       –          –",
        "decayed: 2 leaves, 48 elements; not decayed: 2 leaves, 3 elements",
        "! 1 bfloat16: below half an ulp (0.0039), so plain rounding undoes the decay of "
        "some weights or all; see optwd.compensate_rounding",
    ]


def test_without_rates_there_are_no_rates():
    table = tabulate(PARAMS)
    assert table.splitlines()[0].split() == [
        "leaf",
        "shape",
        "dtype",
        "elements",
        "decay",
        "decided",
        "by",
    ]
    assert table.splitlines()[-1].startswith("decayed: 3 leaves, 50 elements")
    assert table == tabulate(jax.eval_shape(lambda: PARAMS))
    assert tabulate({}) == (
        "leaf  shape  dtype  elements  decay  decided by\n"
        "decayed: 0 leaves, 0 elements; not decayed: 0 leaves, 0 elements"
    )


def test_undecided_leaves_are_listed():
    lines = tabulate({"A_log": jnp.ones((3, 2))}, masks.standard(), weight_decay=1.0)
    assert lines.splitlines()[1].split()[-4:] == ["?", "undecided", "–", "–"]
    assert lines.splitlines()[2].endswith("undecided: 1 leaf, 6 elements")
    with pytest.raises(masks.MaskError, match="nearest: A_log"):
        tabulate({"A_log": jnp.ones(3)}, masks.path("A_lag"))


@pytest.mark.parametrize(
    ("rate", "half_life"),
    [(1e-4, "6,931"), (0.5, "1"), (0.75, "0.5"), (1.0, "0"), (1.1, "flips")],
)
def test_half_life(rate, half_life):
    table = tabulate({"w": 1.0}, weight_decay=rate)
    assert table.splitlines()[1].split()[-1] == half_life
    if rate < 1:  # by its definition
        steps = np.log(0.5) / np.log1p(-rate)
        assert float(half_life.replace(",", "")) == pytest.approx(steps, rel=1e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_the_warning_begins_where_rounding_begins_to_lose(dtype):
    """Above half an ulp every weight moves; below, some weight does not."""
    eps = float(jnp.finfo(dtype).eps)
    weights, half = jnp.asarray([1.0, 1 + eps, 1.5, 2 - eps], dtype), eps / 2
    for rate, warned in ((half * 0.9, True), (half, False), (half * 1.1, False)):
        exact = np.asarray(weights, np.float64) * (1 - rate)
        moved = exact.astype(weights.dtype) != np.asarray(weights)
        assert (not moved.all()) == warned
        assert ("!" in tabulate({"w": weights}, weight_decay=rate)) == warned


def test_matrices_of_0():
    ones, zeros = jnp.ones((2, 2)), jnp.zeros((2, 2))
    params = {
        "out": zeros,
        "masked": zeros,
        "stack": jnp.stack([zeros, ones, zeros]),
        "bias": jnp.zeros(3),
        "empty": jnp.zeros((0, 2)),
        "some": ones.at[0].set(0),
        "numpy": np.zeros((1, 1), np.float32),
    }
    mask = {name: name != "masked" for name in params}
    sphere = optwd.decay.to_norm(mask=mask, stacked="stack")
    radius = sphere.init(params).radius
    end = ": a matrix that starts at 0 is left alone by decay.to_norm(); give it a radius"
    said = {
        "numpy": "all of it",
        "out": "all of it",
        "stack": f"{np.sum(np.asarray(radius['stack']) == 0)} of 3 slices",
    }
    expected = [f"0: {name}, {part}{end}" for name, part in said.items()]
    assert tabulate(params, mask).splitlines()[-3:] == expected
    assert "0: " not in tabulate(jax.eval_shape(lambda: params), mask)
    jax.jit(lambda p: [tabulate(p), p][1])({"out": zeros})  # values are not known there


def test_bad_rates():
    with pytest.raises(ValueError, match="give both"):
        tabulate(PARAMS, learning_rate=0.1)
    with pytest.raises(ValueError, match="weight_decay must be in"):
        tabulate(PARAMS, weight_decay=-0.1)
    with pytest.raises(TypeError, match="learning_rate must be a number here"):
        tabulate(PARAMS, weight_decay=0.1, learning_rate=optax.constant_schedule(0.1))


def test_a_terminal_gets_colour_and_the_same_words(monkeypatch):
    pytest.importorskip("rich")
    params = {**PARAMS, "A_log": jnp.ones((3, 2))}
    plain = tabulate(params, masks.standard(), weight_decay=0.1)

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", Terminal())
    from rich.text import Text

    coloured = tabulate(params, masks.standard(), weight_decay=0.1)
    assert "\x1b[31m" in coloured  # red
    shown = Text.from_ansi(coloured).plain.splitlines()
    assert [line.rstrip() for line in shown] == plain.splitlines()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert tabulate(params, masks.standard(), weight_decay=0.1) == plain


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"weight_decay": 0.1, "learning_rate": optax.constant_schedule(1.0)},
            TypeError,
            r"learning_rate must be a number .* its value at one step",
        ),
        ({"weight_decay": lambda step: 0.1}, TypeError, r"weight_decay .* at one step"),
    ],
)
def test_schedules_are_asked_for_a_value(arguments, error, message):
    with pytest.raises(error, match=message):
        tabulate(PARAMS, **arguments)


def test_a_state_in_place_of_parameters():
    with pytest.raises(
        TypeError, match=r"tabulate takes the parameters, .* ScaleByAdamState"
    ):
        tabulate(optwd.adamw(0.1).init(PARAMS))


def test_the_tour_tells_the_same_of_every_framework():
    pytest.importorskip("haiku")
    pytest.importorskip("equinox")
    import masks_tour

    *frameworks, weighted = masks_tour.main([]).values()
    assert len(frameworks) == 4
    for table in frameworks:  # the attention of Equinox has no biases by default
        assert "decayed: 5 leaves, 1,056 elements; not decayed: " in table
    assert "decayed: 6 leaves, 1,856 elements; not decayed: 7 leaves, 148 " in weighted
