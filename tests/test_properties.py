"""What holds for any tree, mask and finite gradient, up to the edges of every dtype.

- no NaN while eps > 0; structure and dtypes are kept, those of the state too;
- masked leaves are untouched, bit for bit;
- jit equals eager.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.registry import ALL, DECAYS

FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]
SHAPES = [(), (0,), (3,), (2, 3)]


def _array(draw, shape, dtype, value):
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jax.lax.complex(*(_array(draw, shape, jnp.float32, value) for _ in range(2)))
    if not jnp.issubdtype(dtype, jnp.floating):
        return jnp.ones(shape, dtype)
    size = int(np.prod(shape))
    values = [draw(value(jnp.finfo(dtype))) for _ in range(size)]
    return jnp.asarray(np.array(values, np.float64).reshape(shape), dtype)


def up_to_the_edge(info):
    edges = [0.0, info.smallest_subnormal, info.tiny, 1.0, info.max]
    edge = st.sampled_from([sign * float(x) for x in edges for sign in (1, -1)])
    return edge | st.floats(float(info.min), float(info.max))


def ordinary(info):
    return st.floats(-100, 100)


@st.composite
def problems(draw):
    """Parameters, the gradients of three steps, and a mask, all of one random structure.

    Gradients are of the dtypes of the parameters, or in float32 where those are narrower.
    """
    leaf = st.tuples(
        st.sampled_from(SHAPES), st.sampled_from([*FLOATS, jnp.complex64, jnp.int32, bool])
    )
    nodes = st.recursive(
        st.one_of(*4 * [leaf.map(lambda x: {"leaf": x})], st.none()),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
            | st.tuples(inner)
        ),
        max_leaves=4,
    )
    tree = draw(st.lists(nodes, min_size=1, max_size=3))
    is_leaf = lambda x: isinstance(x, dict) and "leaf" in x  # noqa: E731

    wide = draw(st.booleans())

    def fill(value, widened=False):
        def array(x):
            shape, dtype = x["leaf"]
            narrow = dtype in (jnp.bfloat16, jnp.float16)
            return _array(draw, shape, jnp.float32 if narrow and widened else dtype, value)

        return jax.tree.map(array, tree, is_leaf=is_leaf)

    mask = jax.tree.map(lambda _: draw(st.booleans()), tree, is_leaf=is_leaf)
    return fill(ordinary), [fill(up_to_the_edge, wide) for _ in range(3)], mask


def dtypes(tree):
    return [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]


def is_nan(tree):
    return any(np.isnan(np.asarray(x).astype(complex)).any() for x in jax.tree.leaves(tree))


@given(st.sampled_from(ALL), problems())
def test_no_nan_and_nothing_changes_its_dtype(entry, problem):
    params, gradients, _ = problem
    transformation = entry.make()
    state = transformation.init(params)
    for g in gradients:
        updates, new = transformation.update(g, state, params)
        assert jax.tree.structure(updates) == jax.tree.structure(params)
        assert jax.tree.structure(new) == jax.tree.structure(state)
        assert dtypes(updates) == dtypes(g)
        assert dtypes(new) == dtypes(state)
        assert not is_nan(updates)
        assert not is_nan(new)
        state = new


@given(
    st.sampled_from([e for e in DECAYS if "mask" in e.factory.__code__.co_varnames]),
    problems(),
)
def test_masked_leaves_are_untouched(entry, problem):
    params, gradients, mask = problem

    def last(mask):
        transformation = entry.make(mask=mask)
        state = transformation.init(params)
        for g in gradients:
            updates, state = transformation.update(g, state, params)
        return updates

    plain = last(False) if entry.optimizer else gradients[-1]
    for got, want, decays in zip(
        *map(jax.tree.leaves, (last(mask), plain, mask)), strict=True
    ):
        if not decays and jnp.issubdtype(got.dtype, jnp.inexact):
            np.testing.assert_array_equal(got, want)


@given(st.sampled_from(ALL), problems())
def test_jit_equals_eager(entry, problem):
    params, gradients, _ = problem
    transformation = entry.make()
    state = transformation.init(params)
    eager = transformation.update(gradients[0], state, params)
    jitted = jax.jit(transformation.update)(gradients[0], state, params)
    for a, b in zip(*map(jax.tree.leaves, (eager, jitted)), strict=True):
        rtol = (
            4 * float(jnp.finfo(a.dtype).eps) if jnp.issubdtype(a.dtype, jnp.inexact) else 0
        )
        a, b = (np.asarray(x).astype(complex) for x in (a, b))
        tiny = float(jnp.finfo(jnp.float16).smallest_subnormal)
        np.testing.assert_allclose(a, b, rtol=rtol, atol=tiny)
