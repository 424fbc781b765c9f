"""Losses with an exact form in their row: value and gradient against 50 digits, at numbers of any size."""

import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from loss_rows import ROWS

from lossopt_jax import losses

u = 2.0**-23
mp = mpmath.MPContext()
mp.dps = 60

SIZES = [0, 1e-12, 3e-4, 0.017, 0.3, 1, 1.7, 2.5, 7.3, 31, 88.1, 1e4]
NUMBERS = np.array(SIZES + [-size for size in SIZES[1:]])
PAIRS = np.stack(np.meshgrid(NUMBERS, [0.0, 1.0, -2.5, 1e4])).reshape(2, -1)
EXACT = [
    pytest.param(name, options, id="-".join([name, *options]))
    for name, row in ROWS.items()
    if row.exact
    for _, _, options in row.cases
    if not any(isinstance(v, np.ndarray) for v in options.values())
]


def number(x):
    return [mp.mpf(float(v)) for v in x] if np.ndim(x) else mp.mpf(float(x))


def slopes(f, x):
    """The gradient by central differences in 60 digits."""

    def moved(h, i=None):
        return x + h if i is None else [v + h * (j == i) for j, v in enumerate(x)]

    h = mp.mpf(10) ** -25
    ends = [(moved(h, i), moved(-h, i)) for i in (range(len(x)) if isinstance(x, list) else [None])]
    found = [(f(above) - f(below)) / (2 * h) for above, below in ends]
    return [slope if abs(slope) > 1e-20 else mp.mpf(0) for slope in found]


def ulps(got, exact):
    """The largest error relative to the exact value, in u; below float32's range 0 is right."""
    pairs = zip(np.ravel(got), np.ravel(np.array(exact, object)), strict=True)
    return max((float(abs((mp.mpf(float(g)) - e) / e)) / u for g, e in pairs if abs(e) > 1e-37), default=0.0)


@pytest.mark.parametrize(("name", "options"), EXACT)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_exact(name, options, dtype):
    row, loss = ROWS[name], losses.registry[name]
    with np.errstate(over="ignore"):
        pair = (np.asarray(x) for x in (PAIRS if row.grid is None else row.grid))
        predictions, targets = (jnp.asarray(x, dtype if x.dtype.kind == "f" else x.dtype) for x in pair)
    usable = jnp.isfinite(predictions.reshape(len(predictions), -1)).all(1)
    predictions, targets = predictions[usable], targets[usable]
    wide = [np.asarray(x.astype(jnp.float32)) for x in (predictions, targets)]
    f = functools.partial(row.exact, mp, **options)
    exact = [f(number(p), number(t)) for p, t in zip(*wide, strict=True)]
    step = jax.jit(jax.vmap(jax.value_and_grad(lambda p, t: loss(p, t, **options))))
    values, gradients = step(predictions, targets)
    assert ulps(values, exact) <= row.ulps
    if dtype == "float32":
        regression = loss.spec.task == "regression"
        hit = np.array([regression and bool(np.all(p == t)) for p, t in zip(*wide, strict=True)])
        np.testing.assert_array_equal(gradients[hit], 0)
        pairs = [(number(p), number(t)) for p, t, out in zip(*wide, hit, strict=True) if not out]
        slope = [slopes(lambda p, t=t: f(p, t), p) for p, t in pairs]
        assert ulps(gradients[~hit], slope) <= 2 * row.ulps
