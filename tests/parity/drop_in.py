"""A pytest plugin that puts this package's optimizers where Optax has its own.

`pytest -p tests.parity.drop_in …/optax/_src/alias_test.py` then tests ours. A test is left
out if it, or the optimizer that it is given, names neither one of ours nor an optimizer
made of ours. So is one that is given an optimizer of `optax.contrib`: decay is tested
inside of all of them by `test_with_weight_decay`.
"""

import inspect
import re
import sys
from typing import Any

import jax
import optax
import optax.contrib

import optwd

_THEIRS = optax.add_decayed_weights


def _add_decayed_weights(weight_decay=0.0, mask=None):
    # optax.fromage adds a negative multiple of the parameters: that is no decay, and a
    # negative rate raises here by design
    caller = sys._getframe(1).f_code.co_name
    ours = caller != "fromage"
    return (optwd.decay.linear if ours else _THEIRS)(weight_decay, mask)


OURS = {
    "adam": optwd.adam,
    "adamw": optwd.adamw,
    "nadam": optwd.nadam,
    "nadamw": optwd.nadamw,
    "amsgrad": optwd.amsgrad,
    "scale_by_adam": optwd.scale_by_adam,
    "scale_by_amsgrad": optwd.scale_by_amsgrad,
    "add_decayed_weights": _add_decayed_weights,
}


def _made_of_ours(module: Any) -> set[str]:
    functions = inspect.getmembers(module, inspect.isfunction)
    return {name for name, f in functions if OURS.keys() & set(f.__code__.co_names)}


MADE = _made_of_ours(optax)
NAMES = re.compile(rf"\b({'|'.join(OURS.keys() | MADE | _made_of_ours(optax.contrib))})\b")


def _concerned(item) -> bool:
    given = re.search(r"opt_name='(\w+)'", getattr(item.obj, "__x_params_repr__", ""))
    if given:
        return given[1] in OURS.keys() | MADE
    test = inspect.unwrap(item.obj)  # of some, a list of cases
    source = inspect.getsource(test if inspect.isroutine(test) else item.cls)
    return bool(NAMES.search(source))


def pytest_collection_modifyitems(config, items):
    concerned = set(filter(_concerned, items))
    config.hook.pytest_deselected(items=[x for x in items if x not in concerned])
    items[:] = [x for x in items if x in concerned]


def pytest_configure(config):
    """Replace before collection, and only where pytest was asked to: never on import."""
    theirs = {name: getattr(optax, name) for name in OURS}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "optax":
            for name, function in theirs.items():
                if getattr(module, name, None) is function:
                    setattr(module, name, OURS[name])
    assert optax.adamw is optwd.adamw
    jax.devices()  # reads XLA_FLAGS, which a test of Optax sets anew when it is imported
