"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax

from lossopt_jax._core import complaint, is_tracer


class TrainState(NamedTuple):
    """Everything that changes while training, as one pytree.

    Attributes:
      step: updates made, int32.
      seed: uint32; the order of the data and the keys of a stateful model derive from it and `step`.
      params: the parameters.
      opt_state: the optimizer's state; `lo.get_hyperparams` reads it.
      model_state: what a stateful model carries beside its parameters, else None.
      metrics: running sums of the loss and the metrics since the last reset.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    opt_state: Any
    model_state: Any
    metrics: dict[str, Any]


def check_alive(where: str, state: TrainState) -> None:
    """Refuse a state whose memory an earlier step has reused."""
    if not isinstance(state, TrainState):
        got = type(state).__name__
        raise TypeError(complaint(where, "state", "be a TrainState", got, "pass what program.init or fit returned"))
    if isinstance(state.step, jax.Array) and not is_tracer(state.step) and state.step.is_deleted():
        remedy = "go on with the state it returned, or pass donate=False"
        raise ValueError(complaint(where, "state", "be alive", "one that train_step has consumed", remedy))
