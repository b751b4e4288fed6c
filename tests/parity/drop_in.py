"""A pytest plugin that puts this package's optimizers where Optax has its own.

`pytest -p tests.parity.drop_in …/optax/_src/alias_test.py` then tests ours. A test is left
out if neither its class nor the optimizer that it is given names one of ours, or if it is
given one of `optax.contrib`: those are not ours, and decay is tested inside of all of them
by `test_with_weight_decay`.
"""

import inspect
import re
import sys
from typing import Any

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


NAMES = re.compile(rf"\b({'|'.join(OURS)})\b")


def _subject(item) -> Any:
    """The optimizer that a test is given, or its class or module; None in contrib."""
    given = getattr(item.obj, "__x_params_repr__", "")
    name = re.search(r"opt_name='(\w+)'", given)
    if name and not hasattr(optax, name[1]):
        return None
    return getattr(optax, name[1]) if name else item.cls or item.module


def pytest_collection_modifyitems(config, items):
    subjects = set(map(_subject, items)) - {None}
    sources = {subject: inspect.getsource(subject) for subject in subjects}
    concerned = {subject for subject, text in sources.items() if NAMES.search(text)}
    concerned |= set(OURS.values())
    others = [item for item in items if _subject(item) not in concerned]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if _subject(item) in concerned]


def pytest_configure(config):
    """Replace before collection, and only where pytest was asked to: never on import."""
    theirs = {name: getattr(optax, name) for name in OURS}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "optax":
            for name, function in theirs.items():
                if getattr(module, name, None) is function:
                    setattr(module, name, OURS[name])
    assert optax.adamw is optwd.adamw
