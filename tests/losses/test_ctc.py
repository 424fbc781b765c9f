"""CTC: against live optax and torch, 50 digits, enumeration of alignments, and the laws of NUMERICS L16."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

GENERATOR = np.random.default_rng(0)
B, T, K, N = 5, 12, 6, 4
Z = GENERATOR.normal(size=(B, T, K)) * 2
LABELS = np.array([[1, 2, 2, 3], [5, 5, 5, 1], [4, 0, 0, 0], [0, 0, 0, 0], [1, 2, 1, 2]], np.int32)
FRAMES, LENGTHS = np.array([12, 9, 5, 7, 4]), np.array([4, 3, 1, 0, 4])
FRAME_PADS = (np.arange(T) >= FRAMES[:, None]).astype(np.float32)
LABEL_PADS = (np.arange(N) >= LENGTHS[:, None]).astype(np.float32)
GIVEN = (FRAME_PADS, LABELS, LABEL_PADS)


def value_and_grad(z, *given, **options):
    def total(z):
        values = losses.ctc_loss(z, *given, **options)
        return values.sum(), values

    (_, values), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(z)
    return np.asarray(values), np.asarray(slope)


def spelled(path, blank=0):
    return [k for k, _ in itertools.groupby(path) if k != blank]


def enumerated(z, labels, blank=0):
    """Loss and gradient by every path there is."""
    log_p = z - np.log(np.exp(z).sum(-1, keepdims=True))
    paths = [p for p in itertools.product(range(z.shape[1]), repeat=len(z)) if spelled(p, blank) == list(labels)]
    weights = np.array([np.exp(log_p[np.arange(len(z)), p].sum()) for p in paths])
    posterior = sum(w * np.eye(z.shape[1])[list(p)] for w, p in zip(weights, paths, strict=True)) / weights.sum()
    return -np.log(weights.sum()), np.exp(log_p) - posterior


@pytest.mark.parametrize(("labels", "blank"), [([1, 1], 0), ([2, 1, 2], 0), ([0, 2], 1), ([], 2), ([0, 0, 1], 2)])
def test_is_the_sum_over_alignments(labels, blank, x64):
    z, y = Z[0, :5, :3], np.array(labels, np.int32)
    value, slope = value_and_grad(z, np.zeros(5), y, np.zeros(len(y)), blank_id=blank)
    loss, gradient = enumerated(z, labels, blank)
    np.testing.assert_allclose(value, loss, rtol=1e-13)
    np.testing.assert_allclose(slope, gradient, atol=1e-14)


def test_is_that_of_optax(x64):
    optax = pytest.importorskip("optax", reason="the peer")
    value, slope = value_and_grad(Z, *GIVEN)
    ours = jax.jit(losses.ctc_loss_with_forward_probs)(Z, *GIVEN)
    with jax.numpy_dtype_promotion("standard"):
        theirs = jax.jit(optax.ctc_loss_with_forward_probs)(Z, *GIVEN)
        gradient = jax.jit(jax.grad(lambda z: optax.ctc_loss(z, *GIVEN).sum()))(Z)
    np.testing.assert_allclose(value, theirs[0], rtol=1e-10)
    np.testing.assert_allclose(slope, gradient, atol=1e-10)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
    there = np.arange(N + 1) <= LENGTHS[:, None]
    for mine, other, real in zip(ours[1:], theirs[1:], (there, there[:, 1:]), strict=True):
        # what has no path is −∞ here, and multiples of log_epsilon there; what is past the length has none here
        possible = real & (np.asarray(other) > -5e4)
        np.testing.assert_array_equal(np.isfinite(mine), possible)
        np.testing.assert_allclose(mine[possible], other[possible], rtol=1e-10)


def test_is_that_of_torch(x64):
    torch = pytest.importorskip("torch", reason="the peer")
    z = torch.tensor(Z, requires_grad=True)
    theirs = torch.nn.functional.ctc_loss(
        z.log_softmax(-1).transpose(0, 1),
        torch.tensor(LABELS),
        torch.tensor(FRAMES),
        torch.tensor(LENGTHS),
        reduction="none",
    )
    theirs.sum().backward()
    value, slope = value_and_grad(Z, *GIVEN)
    np.testing.assert_allclose(value, theirs.detach(), rtol=1e-12)
    np.testing.assert_allclose(slope, z.grad, atol=1e-12)


def exact(mp, z, labels):
    """−log P by products and sums of 50-digit numbers, over labels with blanks between."""
    states = [0, *itertools.chain.from_iterable((y, 0) for y in labels)]
    alpha = [mp.mpf(1)] + [mp.mpf(0)] * (len(states) - 1)
    for first, row in zip([True] + [False] * len(z), z, strict=False):
        powers = [mp.exp(mp.mpf(float(x))) for x in row]
        p = [x / mp.fsum(powers) for x in powers]
        new = []
        for s, y in enumerate(states):
            reach = alpha[s] + (alpha[s - 1] if s else 0)
            if s > 1 and y not in (0, states[s - 2]):
                reach += alpha[s - 2]
            new.append((mp.mpf(s < 2) if first else reach) * p[y])
        alpha = new
    return -mp.log(mp.fsum(alpha[-2:]))


@pytest.mark.parametrize("scale", [0.1, 3.0, 1e2, 1e4])
def test_fifty_digits(scale):
    mp = pytest.importorskip("mpmath", reason="the truth")
    labels = np.array([1, 2, 2, 3, 4, 1, 1], np.int32)
    z = (np.random.default_rng(1).normal(size=(4, 50, 5)) * scale).astype(np.float32)
    given = np.zeros((4, 50)), np.tile(labels, (4, 1)), np.zeros((4, 7))
    value, _ = value_and_grad(z, *given)
    with mp.workdps(50):
        truth = [float(exact(mp, row, labels)) for row in z]
    np.testing.assert_allclose(value, truth, rtol=4 * 2**-23)


def test_l16_never_negative_and_exact_where_sure():
    z = np.full((3, 3), -17.0, np.float32)
    z[[0, 1, 2], [1, 0, 2]] = 17.0
    value, slope = value_and_grad(z, np.zeros(3), np.array([1, 2], np.int32), np.zeros(2))
    assert 0 <= value < 1e-14
    assert np.isfinite(slope).all()
    many = np.random.default_rng(2).normal(size=(64, 6, 2)).astype(np.float32) * np.float32(12)
    value, slope = value_and_grad(many, np.zeros((64, 6)), np.ones((64, 1), np.int32), np.zeros((64, 1)))
    assert (value >= 0).all()
    assert np.isfinite(slope).all()


def test_l16_padded_frames_are_not_read():
    dirty = np.where(FRAME_PADS[..., None] == 1, np.nan, Z).astype(np.float32)
    value, slope = value_and_grad(dirty, *GIVEN)
    clean, _ = value_and_grad(Z.astype(np.float32), *GIVEN)
    np.testing.assert_array_equal(value, clean)
    assert (slope[FRAME_PADS == 1] == 0).all()
    assert np.isfinite(slope).all()


def test_l16_impossible_is_infinite_with_no_gradient():
    z = jnp.zeros((3, 2, 3))
    given = np.zeros((3, 2)), np.array([[1, 1], [1, 2], [1, 2]], np.int32), np.array([[0, 0], [0, 0], [0, 1]])
    value, slope = value_and_grad(z, *given)
    assert value[0] == np.inf
    assert (slope[0] == 0).all()
    assert np.isfinite(value[1:]).all()
    zeroed, same = value_and_grad(z, *given, zero_infinity=True)
    np.testing.assert_array_equal(zeroed, [0, *value[1:]])
    np.testing.assert_array_equal(same, slope)


def test_l16_a_class_that_cannot_be():
    value, slope = value_and_grad(np.array([[1, 2, -np.inf]], np.float32), np.zeros(1), np.array([1]), np.zeros(1))
    np.testing.assert_allclose(value, np.log1p(np.exp(-1)), rtol=1e-6)
    np.testing.assert_allclose(slope, [[1 / (1 + np.e), -1 / (1 + np.e), 0]], rtol=1e-6)
    value, slope = value_and_grad(np.array([[1, 2, -np.inf]], np.float32), np.zeros(1), np.array([2]), np.zeros(1))
    assert value == np.inf
    assert (slope == 0).all()


def test_l16_long_sequences():
    z = np.random.default_rng(3).normal(size=(2000, 8))
    labels = np.random.default_rng(4).integers(1, 8, 200).astype(np.int32)
    given = np.zeros(2000), labels, np.zeros(200)
    value, _ = value_and_grad(z.astype(np.float32), *given)
    with jax.enable_x64(True) if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        truth, _ = value_and_grad(z.astype(np.float32).astype(np.float64), *given)
    np.testing.assert_allclose(value, truth, rtol=1e-6)


def test_no_frames_and_no_labels():
    ctc = jax.jit(losses.ctc_loss_with_forward_probs)
    loss, blank, label = ctc(np.zeros((2, 0, 3)), np.zeros((2, 0)), np.ones((2, 1), np.int32), np.array([[0], [1]]))
    np.testing.assert_array_equal(loss, [np.inf, 0])
    assert blank.shape == (0, 2, 2)
    assert label.shape == (0, 2, 1)
    assert ctc(np.zeros((0, 3)), np.zeros(0), np.zeros(0, np.int32), np.zeros(0))[0] == 0
    assert ctc(np.zeros((0, 2, 3)), np.zeros((0, 2)), np.zeros((0, 1), np.int32), np.zeros((0, 1)))[0].shape == (0,)


def test_padding_may_stand_anywhere(x64):
    frames, kept = np.array([0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 1.0]), np.array([1, 0, 1, 0, 0])
    labels = np.array([9, 2, -1, 2, 3])
    value, slope = value_and_grad(Z[0], frames, labels, kept)
    packed, dense = value_and_grad(Z[0][frames == 0], np.zeros(8), np.array([2, 2, 3]), np.zeros(3))
    np.testing.assert_allclose(value, packed, rtol=1e-14)
    np.testing.assert_allclose(slope[frames == 0], dense, atol=1e-15)


def test_batch_axes_and_vmap_are_one():
    each = jax.jit(jax.vmap(losses.ctc_loss))(Z, *GIVEN)
    np.testing.assert_allclose(losses.ctc_loss(Z, *GIVEN), each, rtol=1e-6)
    nested = [x[:4].reshape(2, 2, *x.shape[1:]) for x in (Z, *GIVEN)]
    np.testing.assert_allclose(jax.jit(losses.ctc_loss)(*nested), each[:4].reshape(2, 2), rtol=1e-6)
    masks = FRAME_PADS == 1, LABELS, LABEL_PADS == 1
    np.testing.assert_array_equal(jax.jit(jax.vmap(losses.ctc_loss))(Z, *masks), each)
    half = jax.eval_shape(losses.ctc_loss, jnp.asarray(Z, jnp.bfloat16), *GIVEN)
    assert half.dtype == jnp.float32


def test_traced_bad_values_are_nan_and_concrete_ones_raise():
    bad = LABELS.copy()
    bad[0, 1], bad[1, 0], bad[2, 0] = K, -1, 0
    frames = FRAME_PADS.copy()
    frames[3, 0] = 0.5

    def total(z, *given):
        values = losses.ctc_loss(z, *given)
        return values.sum(), values

    (_, value), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(Z, frames, bad, LABEL_PADS)
    np.testing.assert_array_equal(np.isnan(value), [True] * 4 + [False])
    assert np.isnan(slope[:4]).any((1, 2)).all()
    assert np.isfinite(slope[4]).all()
    for wrong in [(FRAME_PADS, bad, LABEL_PADS), (frames, LABELS, LABEL_PADS), (FRAME_PADS, LABELS, LABEL_PADS * 2)]:
        with pytest.raises(ValueError, match=r"ctc_loss: .* must"):
            losses.ctc_loss(Z, *wrong)
    with pytest.raises(ValueError, match="logit_paddings must have the shape"):
        losses.ctc_loss(Z, FRAME_PADS[0], LABELS, LABEL_PADS)
    with pytest.raises(ValueError, match=r"labels must be \[\.\.\., N\]"):
        losses.ctc_loss(Z, FRAME_PADS, LABELS[0], LABEL_PADS[0])
    with pytest.raises(ValueError, match="blank_id must be in"):
        losses.ctc_loss(Z, *GIVEN, blank_id=K)
    with pytest.raises(TypeError, match="labels must be integer"):
        losses.ctc_loss(Z, FRAME_PADS, LABELS * 1.0, LABEL_PADS)
    with pytest.raises(TypeError, match="logits must be floating"):
        losses.ctc_loss(Z.astype(int), *GIVEN)
    with pytest.raises(TypeError, match="zero_infinity must be"):
        losses.ctc_loss(Z, *GIVEN, zero_infinity=1)


@pytest.mark.parametrize("ties", [False, True])
def test_derivatives_of_every_mode_are_finite_differences(ties, x64):
    z, v = Z[0] * (not ties), np.random.default_rng(5).normal(size=Z[0].shape)
    given = np.zeros(T), LABELS[0], np.zeros(N)

    def loss(z):
        return losses.ctc_loss(z, *given)

    slope, along, curved = jax.jit(
        lambda z: (jax.grad(loss)(z), jax.jvp(loss, (z,), (v,))[1], jax.jvp(jax.grad(loss), (z,), (v,))[1])
    )(z)
    step = jax.jit(lambda h: jax.value_and_grad(loss)(z + h * v))
    (up, more), (down, less) = step(1e-5), step(-1e-5)
    np.testing.assert_allclose(along, np.vdot(slope, v), rtol=1e-12)
    np.testing.assert_allclose(along, (up - down) / 2e-5, rtol=1e-7)
    np.testing.assert_allclose(curved, (more - less) / 2e-5, atol=1e-8)
