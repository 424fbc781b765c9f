"""Data whose answer is known."""

import numpy as np
import pytest


@pytest.fixture
def line():
    """A regression whose answer is known: (x, y) of shapes (50, 3) and (50, 1)."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 3)).astype(np.float32)
    return x, x @ np.array([[1.0], [-2.0], [0.5]], np.float32) + 0.3


@pytest.fixture
def classes():
    """Three Gaussian clouds: (x, labels) of shapes (90, 2) and (90,)."""
    rng = np.random.default_rng(1)
    labels = np.arange(90) % 3
    centres = np.array([[2.0, 0.0], [-2.0, 1.0], [0.0, -2.0]])
    return (centres[labels] + rng.normal(size=(90, 2))).astype(np.float32), labels.astype(np.int32)
