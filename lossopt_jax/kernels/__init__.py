"""Hot array programs: each a plain jax.numpy reference plus backends that may decline."""

from lossopt_jax.kernels._blocks import Cut, cut_of, in_blocks
from lossopt_jax.kernels._codes import (
    Codes,
    compressed,
    encode,
    is_stored,
    load,
    loaded,
    of_shape,
    round_stochastically,
    store,
)
from lossopt_jax.kernels._norms import each_anew, norm, norms_of
