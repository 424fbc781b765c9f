"""The same things in Keras's words and argument order: y_true first, `lr=` and `decay=` honoured, Keras 2's formulas.

from lossopt_jax.keras import losses, metrics, optimizers
"""

from lossopt_jax.keras import losses, metrics, optimizers
from lossopt_jax.keras._order import loss
