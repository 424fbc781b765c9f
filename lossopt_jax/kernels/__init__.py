"""Hot array programs: each a plain jax.numpy reference plus backends that may decline."""

from lossopt_jax.kernels._blocks import block_of, in_blocks
