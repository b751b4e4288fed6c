"""Programs that leave the process: what `jax.export` has to know of a state to write it."""

from typing import Any

from optwd import _paths


def register_for_export(*trees: Any) -> None:
    """Let `jax.export` serialize functions of these trees: states, their shapes, arguments.

    Every NamedTuple class in the trees, such as `optax.ScaleByAdamState` and
    `optwd.DecayState`, is registered with JAX by its name. A class that is registered
    already, by Optax or by you, stays as it is. The program that loads the function calls
    this as well, with a state of the same optimizer. Other classes (Flax's ``TrainState``)
    are left to their owners.

    Args:
      trees: any; what counts is the classes of their nodes.

    Raises:
      ValueError: two classes of one package and of one name.

    >>> import jax, jax.numpy as jnp, optwd
    >>> optimizer, theta = optwd.adamw(0.1), jnp.ones(2)
    >>> register_for_export(state := optimizer.init(theta))
    >>> step = jax.export.export(jax.jit(optimizer.update))(theta, state, theta)
    >>> print(jax.export.deserialize(step.serialize()).call(theta, state, theta)[0])
    [-0.1 -0.1]
    """
    from jax import export  # what most programs never need

    for node in _paths.instances(trees, tuple):
        kind = type(node)
        if hasattr(kind, "_fields"):
            name = f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"
            try:
                export.register_namedtuple_serialization(kind, serialized_name=name)
            except ValueError as error:
                if "registration for type" not in str(error):
                    raise
