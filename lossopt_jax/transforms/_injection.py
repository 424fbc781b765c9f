"""The hyperparameters of another library's optimizers, in the state."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import bound_arguments, complaint, default_float, standard_promotion
from lossopt_jax.transforms._base import (
    Foreign,
    GradientTransformation,
    Hyperparameter,
    WrapperState,
    as_transformation,
)
from lossopt_jax.transforms._scheduled import first_values, next_values, of_types, owned, safe_increment

_WHERE = "inject_hyperparams"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Injected(GradientTransformation):
    """Another library's transform, made anew in every update from the hyperparameters in the state."""

    factory: Callable[..., Any]
    arguments: tuple[tuple[str, Any], ...]
    scalars: tuple[str, ...]
    dtype: Any

    @property
    def name(self) -> str:
        return getattr(self.factory, "__name__", _WHERE)

    def _accepts(self, keyword: str) -> bool:
        return super()._accepts(keyword) or self._made(self._first())._accepts(keyword)

    def _first(self) -> dict[str, Hyperparameter]:
        return first_values(self.scalars, dict(self.arguments), jnp.zeros((), jnp.int32))

    def _made(self, hyperparams: dict[str, Hyperparameter]) -> GradientTransformation:
        values = {name: hyper.value.astype(self.dtype) for name, hyper in hyperparams.items()}
        bound = inspect.BoundArguments(inspect.signature(self.factory), dict(self.arguments) | values)
        try:
            with standard_promotion():
                return as_transformation(_WHERE, self.factory(*bound.args, **bound.kwargs))
        except jax.errors.ConcretizationTypeError as error:
            got, remedy = f"a decision of {self.name} on one of {list(values)}", "name it in static_args"
            raise TypeError(complaint(_WHERE, "hyperparameters", "be used as traced numbers", got, remedy)) from error

    def _init(self, params: Any) -> WrapperState:
        hyperparams = self._first()
        inner = owned(self._made(hyperparams)._init(params))
        ours = jax.tree.leaves(inner, is_leaf=lambda node: isinstance(node, Hyperparameter))
        if any(isinstance(node, Hyperparameter) for node in ours):
            _refuse_both()
        return WrapperState(inner, jnp.zeros((), jnp.int32), {}, hyperparams)

    def _run(self, updates: Any, state: Any, params: Any, extra: dict[str, Any]) -> tuple[Any, WrapperState]:
        if not isinstance(state, WrapperState):
            remedy = "pass the state of this transform's init"
            raise TypeError(complaint(self.name, "state", "be a WrapperState", type(state).__name__, remedy))
        hyperparams = next_values(self.name, dict(self.arguments), state.hyperparams, state.step, extra)
        updates, inner = self._made(hyperparams)._run(updates, state.inner, params, extra)
        inner = of_types(self.name, "the state inside", state.inner, inner)
        return updates, WrapperState(inner, safe_increment(state.step), {}, hyperparams)

    def __repr__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments)
        return f"inject_hyperparams({self.name})({arguments})"


def _refuse_both() -> None:
    remedy = "inject where a factory of the other library is called, and chain what that returns"
    raise TypeError(
        complaint(_WHERE, "inner_factory", "use one library's transforms", "this one's beside another's", remedy)
    )


def _is_hyperparameter(parameter: inspect.Parameter, value: Any) -> bool:
    """Whether an argument is one that training may change: a float, or what stands for one."""
    if isinstance(value, bool | type | None.__class__):
        return False
    if callable(value):
        return "mask" not in parameter.name
    if isinstance(value, int):  # 1 for 1.0, and not where whole numbers are meant
        return not isinstance(parameter.default, int)
    dtype = getattr(value, "dtype", None)
    scalar = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and np.shape(value) == ()
    return scalar or isinstance(value, float)


def _foreign_parts(tx: GradientTransformation) -> bool:
    return isinstance(tx, Foreign) or any(map(_foreign_parts, tx._members()))


def inject_hyperparams(
    inner_factory: Callable[..., Any], static_args: str | Iterable[str] = (), hyperparam_dtype: Any = None
) -> Callable[..., GradientTransformation]:
    """Keep the hyperparameters of another library's optimizer in the state, numbers and schedules alike.

    What this library makes has them there anyway, so that for its own factories the call changes nothing. Of any other
    one every argument that is a float, a 0-d floating array, a schedule or a `StatefulSchedule` becomes a
    hyperparameter, read and written by `get_hyperparams` and `set_hyperparams`, without a recompile; the transform is
    made from their values in every update. Other arguments stay as they are: whole numbers whose default is one, flags,
    dtypes, and functions for an argument with "mask" in its name.

    Args:
      inner_factory: a function that makes a transform, such as `optax.adamw`.
      static_args: names of further arguments that stay as they are: numbers on which the factory branches, functions
        that are no schedules.
      hyperparam_dtype: in which another library's factory is given its numbers; None for JAX's default float.

    Returns:
      The factory, with the same arguments.

    Raises:
      ValueError: static_args that the factory does not have.
      TypeError: a factory that puts this library's transforms beside another's, or that branches on a hyperparameter.

    Example:
      >>> import optax, lossopt_jax as lo
      >>> tx = lo.transforms.inject_hyperparams(optax.sgd)(learning_rate=0.5)
      >>> state = lo.set_hyperparams(tx.init(1.0), learning_rate=0.25)
      >>> tx.update(1.0, state, 1.0)[0]
      Array(-0.25, dtype=float32)

    Differs from: optax, which keeps numbers in the parameters' dtype (β₂ = 0.999 is 1 in bfloat16), takes a mask for a
      schedule and a dtype for one too, whole numbers for hyperparameters, and follows a schedule although another value
      has been written. Its `state.hyperparams["learning_rate"] = x` is `set_hyperparams(state, learning_rate=x)` here.
    """
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    signature = inspect.signature(inner_factory)
    if not static <= set(signature.parameters):
        raise ValueError(complaint(_WHERE, "static_args", f"be among {list(signature.parameters)}", sorted(static)))
    name = getattr(inner_factory, "__name__", _WHERE)

    def make(*args: Any, **kwargs: Any) -> GradientTransformation:
        if getattr(inner_factory, "__module__", "").partition(".")[0] == "lossopt_jax":
            return inner_factory(*args, **kwargs)
        arguments = bound_arguments(name, signature, args, kwargs)
        scalars = tuple(
            own
            for own, value in arguments.items()
            if own not in static and _is_hyperparameter(signature.parameters[own], value)
        )
        dtype = default_float() if hyperparam_dtype is None else hyperparam_dtype
        injected = Injected(inner_factory, tuple(arguments.items()), scalars, dtype)
        first = injected._made(injected._first())
        if isinstance(first, Foreign):
            return injected
        if _foreign_parts(first):
            _refuse_both()
        return inner_factory(*args, **kwargs)

    make.__name__ = make.__qualname__ = name
    make.__doc__, make.__signature__ = inner_factory.__doc__, signature
    return make
