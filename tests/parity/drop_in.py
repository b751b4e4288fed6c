"""A pytest plugin that puts this package's optimizers where Optax has its own.

`pytest -p tests.parity.drop_in …/optax/_src/alias_test.py` then tests ours.
"""

import sys

import optax

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


def pytest_configure(config):
    """Replace before collection, and only where pytest was asked to: never on import."""
    theirs = {name: getattr(optax, name) for name in OURS}
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "optax":
            for name, function in theirs.items():
                if getattr(module, name, None) is function:
                    setattr(module, name, OURS[name])
    assert optax.adamw is optwd.adamw
