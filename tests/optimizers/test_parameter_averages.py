"""Averages of the parameters against those of torch, Keras and NumPy, in float64."""

from functools import partial

import numpy as np
import pytest
from paths import Case, check, falling, flat, gradients, keras_path, numpy_path, parametrize, path_of, tree

import lossopt_jax as lo

T, O = lo.transforms, lo.optimizers
RATE = 0.1


def averages(params, state):
    return T.averaged_params(state, params)


def torch_average(make_average, start=0):
    """Where torch's AveragedModel is after every step of gradient descent."""
    torch = pytest.importorskip("torch", reason="torch is the extra 'oracles'")
    model = torch.nn.ParameterList([torch.tensor(flat(tree(0)))])
    averaged, points = make_average(torch.optim.swa_utils)(model), []
    for step, grads in enumerate(gradients()):
        with torch.no_grad():
            model[0] -= RATE * torch.tensor(flat(grads))
        if step >= start:
            averaged.update_parameters(model)
        points.append((averaged.module if step >= start else model)[0].detach().numpy().copy())
    return np.stack(points)


def moving(decay, every, start, overwrite):
    """A weighted mean of every k-th point from some step on, by its definition."""

    def begin(w):
        points, kept, average = [], [], [w.copy()]

        def move(g, t):
            w[:] -= RATE * g
            if t > start and (t - start) % every == 0:
                b = decay(t - 1) if callable(decay) else decay
                kept[:] = [k * b for k in kept] + [1 - b]
                points.append(w.copy())
                average[0] = sum(k * p for k, p in zip(kept, points, strict=True)) / sum(kept)
                if overwrite and len(points) % overwrite == 0:
                    w[:] = average[0]
            return average[0] if points else w

        return move

    return begin


CASES = {
    "ema_params": [
        Case(
            "torch",
            lambda: T.ema_params(O.sgd(RATE), 0.8, debias=False),
            lambda: torch_average(lambda u: partial(u.AveragedModel, multi_avg_fn=u.get_ema_multi_avg_fn(0.8))),
            partial(path_of, read=averages),
        ),
        Case(
            "keras",
            lambda: T.ema_params(O.sgd(RATE), 0.8, debias=False, overwrite_period=3),
            lambda: keras_path(lambda k: k.SGD(RATE, use_ema=True, ema_momentum=0.8, ema_overwrite_frequency=3)),
        ),
        *(
            Case(
                "NumPy",
                lambda a=a: T.ema_params(O.sgd(RATE), a[0], every=a[1], start=a[2], overwrite_period=a[3]),
                lambda a=a: numpy_path(moving(*a)),
                partial(path_of, read=averages),
            )
            for a in ((0.8, 1, 0, None), (0.6, 2, 3, 2), (falling, 1, 0, None))
        ),
    ],
    "swa": [
        Case(
            "torch",
            lambda start=start: T.swa(O.sgd(RATE), start),
            lambda start=start: torch_average(lambda u: u.AveragedModel, start),
            partial(path_of, read=averages),
        )
        for start in (0, 3)
    ],
}


@pytest.mark.usefixtures("x64")
@parametrize(CASES)
def test_reference(case):
    check(case)


def test_every_other_point_counts_in_a_mean(x64):
    points = path_of(O.sgd(RATE))
    means = path_of(T.swa(O.sgd(RATE), 2, 2), read=averages)
    np.testing.assert_allclose(means[:3], points[:3])  # nothing to average yet
    for step in range(3, len(points)):
        np.testing.assert_allclose(means[step], np.mean(points[3 : step + 1 : 2], axis=0), rtol=1e-12, atol=1e-14)
