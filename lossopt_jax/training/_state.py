"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax


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
