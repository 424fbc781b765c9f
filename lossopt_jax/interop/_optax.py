"""optax: either library's transforms work in the other's chain as they are; this one also takes extra arguments."""

from typing import Any

from lossopt_jax.transforms._base import as_transformation


def to_optax(tx: Any) -> Any:
    """The same transform as an `optax.GradientTransformationExtraArgs`.

    Needed where a member must get `value=`, `grad=`, `value_fn=`, `key=` or `loss=` inside `optax.chain`, which hands
    extra arguments only to transforms of that type, and for code that asks `isinstance`. Keywords that `tx` does not
    know are another member's, and dropped. Without extra arguments no adapter is needed.

    Args:
      tx: a transform of this library.

    Returns:
      An optax.GradientTransformationExtraArgs with `tx`'s own init and state.

    Raises:
      RuntimeError: optax is not installed.
      TypeError: `tx` is no transform.

    Example:
      >>> import optax, lossopt_jax as lo
      >>> tx = optax.chain(optax.clip(1.0), lo.interop.to_optax(lo.optimizers.sgd(0.5)))
      >>> tx.update(4.0, tx.init(0.0), 0.0)[0]
      Array(-0.5, dtype=float32)
    """
    try:
        import optax
    except ImportError:
        raise RuntimeError("to_optax: optax must be installed, got none; run `python -m pip install optax`") from None
    tx = as_transformation("to_optax", tx)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return tx.update(updates, state, params, **{name: given for name, given in extra.items() if tx._accepts(name)})

    return optax.GradientTransformationExtraArgs(tx.init, update)
