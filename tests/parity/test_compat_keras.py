"""`compat.keras` equals real Keras 3 on its JAX backend over 60 steps, to 1e-12.

- every optimizer with decay, its flags, schedules, and variables excluded by name;
- a pattern to exclude is searched for in the name, as Keras does, whatever is in it;
- the defaults are Keras's; a name to exclude that is nowhere is an error.
"""

import inspect
import os

import jax.numpy as jnp
import numpy as np
import pytest

from optwd import masks
from optwd.compat import keras as compat
from tests.parity import recipe

os.environ.setdefault("KERAS_BACKEND", "jax")
keras = pytest.importorskip("keras")

if keras.backend.backend() != "jax":
    pytest.skip("Keras runs on another backend", allow_module_level=True)

PAIRS = {
    "adam": (compat.adam, keras.optimizers.Adam),
    "adamw": (compat.adamw, keras.optimizers.AdamW),
    "sgd": (compat.sgd, keras.optimizers.SGD),
}
CASES = [
    ("adam", {}),
    ("adam", {"weight_decay": 0.3, "epsilon": 1e-2, "beta_2": 0.99}),
    ("adam", {"weight_decay": 0.3, "amsgrad": True, "beta_2": 0.9}),
    ("adamw", {}),
    ("adamw", {"weight_decay": 0.3, "epsilon": 1e-2}),
    ("sgd", {}),
    ("sgd", {"weight_decay": 0.3}),
    ("sgd", {"weight_decay": 0.3, "momentum": 0.9}),
    ("sgd", {"weight_decay": 0.3, "momentum": 0.9, "nesterov": True}),
]


@pytest.fixture
def float64(x64):
    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)


def keras_run(optimizer, table=None):
    """`optimizer` of Keras on the common recipe; `table` are its learning rates."""
    variables = {
        k: keras.Variable(v, name=k, dtype="float64") for k, v in recipe.START.items()
    }
    optimizer.build(list(variables.values()))
    seen = []
    for t in range(recipe.STEPS):
        if table is not None:
            optimizer.learning_rate = float(table[t])
        gradients = [
            jnp.asarray(recipe.gradient(k, np.asarray(v.value), t))
            for k, v in variables.items()
        ]
        optimizer.apply(gradients)
        seen.append({k: np.asarray(v.value) for k, v in variables.items()})
    return seen


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
def test_equal_to_keras(name, options, scheduled):
    ours, theirs = PAIRS[name]
    table = recipe.WARM if scheduled else None
    rate = recipe.schedule(table) if scheduled else 0.02
    expected = keras_run(theirs(0.02, **options), table)
    recipe.assert_equal(recipe.ours(ours(rate, **options)), expected)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("names", [["bias"], ["ia", "^scale$"]], ids=str)
def test_excluded_variables(names):
    theirs = keras.optimizers.AdamW(0.02, weight_decay=0.3)
    theirs.exclude_from_weight_decay(var_names=names)
    mask = compat.exclude_from_weight_decay(names)
    got = recipe.ours(compat.adamw(0.02, 0.3, mask=mask))
    recipe.assert_equal(got, keras_run(theirs))


NAMES = [
    "kernel",
    "bias",
    "gamma",
    "beta",
    "moving_mean",
    "embeddings",
    "a_b",
    "scale",
    "b$",
    "b_c",
]
PATTERNS = [
    *("bias", "^bias", "bias$", "^bias$", "ia", "^(bias|gamma)$", "(^bias|gamma)", ".*"),
    *("^bias|scale$", "b.*_", "a$|^b", "(?i)BIAS", r"b\$", "e.*l", "^.e", "[ab]$", "a|b"),
    *("^a", "b$", r"\w_\w", "(?:^|_)b", "gamma|beta", "s+", "(?<=_)b", "bias|^nothing"),
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_searched_for_as_keras_does(pattern):
    """Keras's own decision for every name, in layers whose names would match as well."""
    theirs = keras.optimizers.AdamW()
    theirs.exclude_from_weight_decay(var_names=[pattern])
    variables = {k: keras.Variable([1.0], name=k) for k in NAMES}  # told apart by id
    decays = {k: theirs._use_weight_decay(v) for k, v in variables.items()}
    tree = {"bias": dict.fromkeys(NAMES, 1.0), "layer_scale": {"b_": {"gamma": 1.0}}}
    got = compat.exclude_from_weight_decay([pattern]).tree(tree)
    assert got["bias"] == decays
    assert got["layer_scale"]["b_"]["gamma"] == decays["gamma"]


def test_an_excluded_name_that_is_nowhere_is_an_error():
    mask = compat.exclude_from_weight_decay(["layer_norm"])
    params = {"layer_norm": {"gamma": jnp.ones(2)}, "dense": {"kernel": jnp.ones(2)}}
    with pytest.raises(masks.MaskError, match=r"layer_norm.* matches no leaf"):
        compat.adamw(mask=mask).init(params)


@pytest.mark.parametrize("name", PAIRS)
def test_defaults_are_keras(name):
    ours, theirs = (inspect.signature(f).parameters for f in PAIRS[name])
    assert ours.keys() - theirs.keys() == {"mask"}
    for argument in ours.keys() - {"mask"}:
        assert ours[argument].default == theirs[argument].default, argument
