"""compile, fit, learning-rate search, sharding: the only room that touches the host."""

from lossopt_jax.training._find_lr import RangeTest, find_lr, suggest
from lossopt_jax.training._history import History
from lossopt_jax.training._program import Program, compile
from lossopt_jax.training._sharding import state_sharding
from lossopt_jax.training._state import TrainState
