"""Against live optax, Keras and torch, in float64, through SEMANTICS §11."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lossopt_jax import losses

random = np.random.default_rng(0)
Z, Y, SOFT = random.normal(size=(5, 3)) * 3, random.normal(size=(5, 3)), random.uniform(size=(5, 3))
P, Q = 1 / (1 + np.exp(-Z)), np.exp(Z) / np.exp(Z).sum(-1, keepdims=True)
SIMPLEX, INDEX = SOFT / SOFT.sum(-1, keepdims=True), np.array([2, 0, 1, 2, 1], np.int32)
WHERE = np.arange(3) != ((INDEX + 1) % 3)[:, None]
SIGNS = np.where(SOFT > 0.5, 1, -1).astype(np.int32)
BITS, HOT = (SIGNS + 1) // 2, np.eye(3)[INDEX]
LISTS = np.array([[0, -1, 1], [2, 1, -1], [-1, 0, 0], [1, -1, -1], [0, 2, 1]], np.int32)
LOG_Q, LOG_T, RATES, COUNTS = np.log(Q), np.log(SIMPLEX), np.exp(Y), 5 * SOFT


def agree(ours, theirs, predictions, targets):
    """Values and, for a peer that JAX can differentiate, gradients."""
    one, two = (jax.jit(jax.value_and_grad(lambda p, f=f: jnp.sum(f(p, targets)))) for f in (ours, theirs))
    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(ours(predictions, targets), theirs(predictions, targets), rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(one(predictions)[1], two(predictions)[1], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "targets", "options"),
    [
        ("squared_error", Y, {}),
        ("l2_loss", Y, {}),
        ("huber_loss", Y, {}),
        ("huber_loss", Y, {"delta": 0.3}),
        ("log_cosh", Y, {}),
        ("cosine_similarity", Y, {}),
        ("cosine_similarity", Y, {"where": WHERE}),
        ("cosine_distance", Y, {"axis": 0}),
        ("kl_divergence", SIMPLEX, {}),
        ("kl_divergence", SIMPLEX, {"where": WHERE}),
        ("kl_divergence_with_log_targets", LOG_T, {"axis": 0}),
        ("generalized_kl_divergence", SOFT, {"where": WHERE}),
        ("hinge_loss", SIGNS, {}),
        ("perceptron_loss", SIGNS, {}),
        ("sparsemax_loss", BITS, {}),
        ("multiclass_hinge_loss", INDEX, {}),
        ("multiclass_perceptron_loss", INDEX, {}),
        ("multiclass_sparsemax_loss", INDEX, {}),
        ("poly_loss_cross_entropy", SIMPLEX, {}),
        ("poly_loss_cross_entropy", SIMPLEX, {"epsilon": -1.0, "where": WHERE}),
        ("sigmoid_focal_loss", SOFT, {}),
        ("sigmoid_focal_loss", SOFT, {"alpha": 0.3, "gamma": 1.3}),
        ("safe_softmax_cross_entropy", SIMPLEX, {}),
        ("sigmoid_binary_cross_entropy", SOFT, {}),
        ("softmax_cross_entropy", SIMPLEX, {}),
        ("softmax_cross_entropy", SIMPLEX, {"axis": 0}),
        ("softmax_cross_entropy", SIMPLEX, {"where": WHERE}),
        ("softmax_cross_entropy_with_integer_labels", INDEX, {}),
        ("softmax_cross_entropy_with_integer_labels", INDEX, {"where": WHERE}),
        ("softmax_cross_entropy_with_integer_labels", np.array([1, 4, 0], np.int32), {"axis": 0}),
    ],
)
def test_optax(name, targets, options, x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    ours, theirs = losses.registry[name], getattr(optax.losses, name)
    agree(lambda p, t: ours(p, t, **options), lambda p, t: theirs(p, t, **options), Z, targets)


def test_optax_smooth_labels(x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    hot = np.eye(3)[INDEX]
    expected = optax.softmax_cross_entropy(Z, optax.smooth_labels(hot, 0.2))
    np.testing.assert_allclose(losses.softmax_cross_entropy(Z, hot, label_smoothing=0.2), expected, rtol=1e-12)
    got = losses.softmax_cross_entropy_with_integer_labels(Z, INDEX, label_smoothing=0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "predictions", "targets", "options"),
    [
        ("mean_squared_error", Z, Y, {}),
        ("mean_absolute_error", Z, Y, {}),
        ("mean_squared_logarithmic_error", RATES, COUNTS, {}),
        ("mean_absolute_percentage_error", Z, Y, {}),
        ("poisson", RATES, COUNTS, {}),
        ("categorical_hinge", Z, HOT, {}),
        ("binary_focal_crossentropy", P, SOFT, {}),
        ("binary_focal_crossentropy", P, SOFT, {"apply_class_balancing": True, "label_smoothing": 0.1, "gamma": 1.5}),
        ("binary_focal_crossentropy", Z, SOFT, {"from_logits": True}),
        ("categorical_focal_crossentropy", Q, SIMPLEX, {"gamma": 1.5, "label_smoothing": 0.1}),
        ("categorical_focal_crossentropy", Z, SIMPLEX, {"from_logits": True, "alpha": 0.5}),
        ("categorical_generalized_cross_entropy", Q, INDEX, {"q": 0.3}),
        ("kullback_leibler_divergence", Q, SIMPLEX, {}),
        ("binary_crossentropy", P, SOFT, {}),
        ("binary_crossentropy", P, SOFT, {"label_smoothing": 0.2}),
        ("binary_crossentropy", Z, SOFT, {"from_logits": True, "label_smoothing": 0.2}),
        ("categorical_crossentropy", Q, SIMPLEX, {}),
        ("categorical_crossentropy", Q, SIMPLEX, {"label_smoothing": 0.2}),
        ("categorical_crossentropy", Z, SIMPLEX, {"from_logits": True}),
        ("sparse_categorical_crossentropy", Q, INDEX, {}),
        ("sparse_categorical_crossentropy", Z, INDEX, {"from_logits": True}),
        ("sparse_categorical_crossentropy", Z, INDEX, {"from_logits": True, "ignore_class": 2}),
    ],
)
def test_keras(name, predictions, targets, options, x64):
    keras = pytest.importorskip("keras", reason="Keras is the peer")
    ours, theirs = losses.registry[name], getattr(keras.losses, name.replace("kullback_leibler", "kl"))
    mine = {"ignore_index" if key == "ignore_class" else key: value for key, value in options.items()}
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        expected = theirs(targets, predictions, **options)
    np.testing.assert_allclose(ours(predictions, targets, **mine), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "function", "predictions", "targets", "mine", "theirs"),
    [
        ("mean_squared_error", "mse_loss", Z, Y, {}, {}),
        ("mean_absolute_error", "l1_loss", Z, Y, {}, {}),
        ("huber_loss", "huber_loss", Z, Y, {"delta": 0.3}, {"delta": 0.3}),
        ("smooth_l1_loss", "smooth_l1_loss", Z, Y, {"beta": 0.3}, {"beta": 0.3}),
        ("poisson_nll_loss", "poisson_nll_loss", Z, COUNTS, {}, {}),
        ("poisson_nll_loss", "poisson_nll_loss", Z, COUNTS, {"full": True}, {"full": True}),
        ("poisson_nll_loss", "poisson_nll_loss", RATES, COUNTS, {"log_input": False}, {"log_input": False, "eps": 0}),
        ("kl_divergence", "kl_div", LOG_Q, SIMPLEX, {}, {"reduction": "batchmean"}),
        ("kl_divergence_with_log_targets", "kl_div", LOG_Q, LOG_T, {}, {"reduction": "batchmean", "log_target": True}),
        ("soft_margin_loss", "soft_margin_loss", Z, SIGNS, {}, {}),
        ("hinge_embedding_loss", "hinge_embedding_loss", Z, SIGNS, {"margin": 0.4}, {"margin": 0.4}),
        ("multi_margin_loss", "multi_margin_loss", Z, INDEX, {}, {}),
        ("multi_margin_loss", "multi_margin_loss", Z, INDEX, {"p": 2, "margin": 0.3}, {"p": 2, "margin": 0.3}),
        ("multilabel_margin_loss", "multilabel_margin_loss", Z, LISTS, {}, {}),
        ("multilabel_soft_margin_loss", "multilabel_soft_margin_loss", Z, BITS, {}, {}),
        ("nll_loss", "nll_loss", LOG_Q, INDEX, {}, {}),
        ("binary_crossentropy", "binary_cross_entropy", P, SOFT, {}, {}),
        ("sigmoid_binary_cross_entropy", "binary_cross_entropy_with_logits", Z, SOFT, {}, {}),
        ("softmax_cross_entropy", "cross_entropy", Z, SIMPLEX, {}, {}),
        ("softmax_cross_entropy", "cross_entropy", Z, SIMPLEX, {"label_smoothing": 0.2}, {"label_smoothing": 0.2}),
        ("softmax_cross_entropy_with_integer_labels", "cross_entropy", Z, INDEX, {}, {}),
        (
            "softmax_cross_entropy_with_integer_labels",
            "cross_entropy",
            Z,
            INDEX,
            {"ignore_index": 2, "label_smoothing": 0.2},
            {"ignore_index": 2, "label_smoothing": 0.2},
        ),
    ],
)
def test_torch(name, function, predictions, targets, mine, theirs, x64):
    torch = pytest.importorskip("torch", reason="torch is the peer")
    p, t = torch.tensor(predictions, requires_grad=True), torch.tensor(targets)
    t = t.long() if name in ("nll_loss", "multi_margin_loss", "multilabel_margin_loss") or t.ndim == 1 else t
    expected = getattr(torch.nn.functional, function)(p, t, **theirs)
    expected.backward()
    counted = targets != mine.get("ignore_index") if targets.ndim == 1 else None

    def ours(p):
        return losses.mean(losses.registry[name](p, targets, **mine), where=counted)

    value, gradient = jax.jit(jax.value_and_grad(ours))(predictions)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    np.testing.assert_allclose(gradient, p.grad.numpy(), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("full", [False, True])
def test_torch_gaussian(full, x64):
    torch = pytest.importorskip("torch", reason="torch is the peer")
    variance = np.exp(Z) * (SOFT > 0.3) + 1e-9  # some below ε, where torch too keeps the gradient
    p, v = (torch.tensor(x, requires_grad=True) for x in (Y, variance))
    expected = torch.nn.functional.gaussian_nll_loss(p, torch.tensor(SOFT), v, full=full, eps=1e-3)
    expected.backward()

    def ours(p, v):
        return losses.mean(losses.gaussian_nll_loss(p, SOFT, v, full=full, eps=1e-3))

    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(Y, variance)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-12)
    for one, two in zip(gradients, (p.grad, v.grad), strict=True):
        np.testing.assert_allclose(one, two.numpy(), rtol=1e-10)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.5, np.inf])
def test_torch_pairwise_distance(order, x64):
    torch = pytest.importorskip("torch", reason="torch is the peer")
    p = torch.tensor(Z, requires_grad=True)
    expected = torch.nn.functional.pairwise_distance(p, torch.tensor(Y), p=order)
    expected.sum().backward()
    value, back = jax.vjp(lambda p: losses.pairwise_distance(p, Y, p=order), Z)
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(back(np.ones(5))[0], p.grad.numpy(), rtol=1e-10)


def test_scipy_likelihoods(x64):
    stats = pytest.importorskip("scipy.stats", reason="SciPy is the peer")
    counts, a = np.round(COUNTS), Y
    r = np.exp(-a)
    pairs = [
        (losses.laplace_nll_loss(Z, Y, log_scale=a), stats.laplace.logpdf(Y, Z, np.exp(a))),
        (losses.student_t_nll_loss(Z, Y, log_scale=a), stats.t.logpdf(Y, 3, Z, np.exp(a))),
        (
            losses.student_t_nll_loss(Z, Y, log_scale=a, degrees_of_freedom=1.3),
            stats.t.logpdf(Y, 1.3, Z, np.exp(a)),
        ),
        (
            losses.negative_binomial_nll_loss(Z, counts, log_dispersion=a),
            stats.nbinom.logpmf(counts, r, r / (r + np.exp(Z))),
        ),
        (losses.gaussian_nll_loss(Z, Y, np.exp(a), full=True), stats.norm.logpdf(Y, Z, np.exp(a / 2))),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, -theirs, rtol=1e-11, atol=1e-12)


def test_beta_weights_the_gaussian_and_is_no_part_of_the_gradient(x64):
    v = np.exp(Z)

    def weighted(p, v, weight):
        return jnp.sum(weight * losses.gaussian_nll_loss(p, SOFT, v))

    ours = jax.value_and_grad(lambda p, v: jnp.sum(losses.beta_nll_loss(p, SOFT, v, beta=0.3)), (0, 1))(Y, v)
    theirs = jax.value_and_grad(weighted, (0, 1))(Y, v, v**0.3)
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)


def test_divergences_by_their_definitions(x64):
    p, t = Q, SIMPLEX
    m, overlap = (p + t) / 2, (p**0.3 * t**0.7).sum(-1)
    pairs = [
        (losses.jensen_shannon_divergence(LOG_Q, LOG_T), (t * np.log(t / m) + p * np.log(p / m)).sum(-1) / 2),
        (losses.renyi_divergence(LOG_Q, LOG_T, alpha=0.7), np.log(overlap) / -0.3),
        (losses.renyi_divergence(LOG_Q, LOG_T, alpha=2.0), np.log((t**2 / p).sum(-1))),
        (losses.bhattacharyya_distance(LOG_Q, LOG_T), -np.log(np.sqrt(p * t).sum(-1))),
        (losses.hellinger_distance(LOG_Q, LOG_T), np.sqrt(((np.sqrt(p) - np.sqrt(t)) ** 2).sum(-1) / 2)),
    ]
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("alpha", "member"),
    [
        (2.0, lambda x: x * x / 2),
        (1.0, lambda x: np.sqrt(x * x + 1) - 1),
        (0.0, lambda x: np.log1p(x * x / 2)),
        (-2.0, lambda x: 2 * x * x / (x * x + 4)),
        (-np.inf, lambda x: -np.expm1(-x * x / 2)),
        (1.5, lambda x: 0.5 / 1.5 * ((x * x / 0.5 + 1) ** 0.75 - 1)),
    ],
)
def test_members_of_the_robust_family(alpha, member, x64):
    x = np.concatenate([np.geomspace(1e-3, 1e3, 20), -np.geomspace(1e-3, 1e3, 20)])
    for given in (alpha, jnp.asarray(alpha)):
        got = jax.jit(lambda a: losses.general_robust_loss(3 * x, 0 * x, a, scale=3.0))(given)
        np.testing.assert_allclose(got, member(x), rtol=1e-9)
    slope = jax.grad(lambda a: jnp.sum(losses.general_robust_loss(x, 0 * x, a)))(jnp.asarray(alpha))
    assert np.isfinite(slope)


W = np.array([0.5, 2.0, 0.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dense", [False, True])
def test_torch_class_weights(dense, smoothing, x64):
    torch = pytest.importorskip("torch", reason="torch is the peer")
    name, t = ("softmax_cross_entropy", SIMPLEX) if dense else ("softmax_cross_entropy_with_integer_labels", INDEX)
    p, target = torch.tensor(Z, requires_grad=True), torch.tensor(t) if dense else torch.tensor(t).long()
    expected = torch.nn.functional.cross_entropy(
        p, target, torch.tensor(W), reduction="none", label_smoothing=smoothing
    )
    expected.sum().backward()
    value, back = jax.vjp(lambda p: losses.registry[name](p, t, label_smoothing=smoothing, class_weight=W), Z)
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(back(np.ones(5))[0], p.grad.numpy(), rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize(
    ("name", "function", "option", "p", "t"),
    [
        ("sigmoid_binary_cross_entropy", "binary_cross_entropy_with_logits", "pos_weight", Z, SOFT),
        ("nll_loss", "nll_loss", "class_weight", LOG_Q, INDEX),
        ("multi_margin_loss", "multi_margin_loss", "class_weight", Z, INDEX),
        ("multilabel_soft_margin_loss", "multilabel_soft_margin_loss", "class_weight", Z, BITS),
    ],
)
def test_torch_weights(name, function, option, p, t, x64):
    torch = pytest.importorskip("torch", reason="torch is the peer")
    theirs = {("pos_weight" if option == "pos_weight" else "weight"): torch.tensor(W)}
    target = torch.tensor(t).long() if t.ndim == 1 else torch.tensor(t)
    expected = getattr(torch.nn.functional, function)(torch.tensor(p), target, reduction="none", **theirs)
    np.testing.assert_allclose(losses.registry[name](p, t, **{option: W}), expected.numpy(), rtol=1e-12)


def test_z_loss_and_softcap_by_their_definitions(x64):
    capped = 3 * np.tanh(Z / 3)
    level = np.log(np.exp(capped).sum(-1))
    for name, t in (("softmax_cross_entropy", SIMPLEX), ("softmax_cross_entropy_with_integer_labels", INDEX)):
        got = losses.registry[name](Z, t, z_loss=0.1, softcap=3.0)
        np.testing.assert_allclose(got, losses.registry[name](capped, t) + 0.1 * level**2, rtol=1e-12)
        assert np.isfinite(losses.registry[name](jnp.full((1, 3), -jnp.inf), t[:1], z_loss=0.1)).all()


def test_optax_labels_smoothed(x64):
    optax = pytest.importorskip("optax", reason="optax is the peer")
    np.testing.assert_allclose(losses.smooth_labels(SIMPLEX, 0.3), optax.smooth_labels(SIMPLEX, 0.3), rtol=1e-14)
    np.testing.assert_allclose(losses.smooth_labels(SIMPLEX.T, 0.3, axis=0), losses.smooth_labels(SIMPLEX, 0.3).T)
    expected = np.where(WHERE, 0.7 * SIMPLEX + 0.15, 0)
    np.testing.assert_allclose(losses.smooth_labels(SIMPLEX, 0.3, where=WHERE), expected, rtol=1e-14)
    with pytest.raises(ValueError, match="alpha must be in"):
        losses.smooth_labels(SIMPLEX, 1.3)
    with pytest.raises(ValueError, match="where must have the shape"):
        losses.smooth_labels(SIMPLEX, 0.3, where=WHERE[0])
    with pytest.raises(TypeError, match="labels must be floating"):
        losses.smooth_labels(BITS, 0.3)


def test_asymmetric_loss_by_its_definition(x64):
    p = 1 / (1 + np.exp(-Z))
    shifted = np.maximum(p - 0.2, 0)
    expected = -SOFT * (1 - p) ** 1.5 * np.log(p) - (1 - SOFT) * shifted**3 * np.log(1 - shifted)
    got = losses.asymmetric_loss(Z, SOFT, gamma_positive=1.5, gamma_negative=3.0, margin=0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    focal = losses.asymmetric_loss(Z, BITS, gamma_positive=2.0, gamma_negative=2.0, margin=0.0)
    np.testing.assert_allclose(focal, losses.sigmoid_focal_loss(Z, BITS), rtol=1e-10)


def test_softmax_focal_is_the_categorical_one(x64):
    got = losses.softmax_focal_loss_with_integer_labels(Z, INDEX, gamma=1.5)
    expected = losses.categorical_focal_crossentropy(Z, HOT, alpha=1.0, gamma=1.5, from_logits=True)
    np.testing.assert_allclose(got, expected, rtol=1e-12)


def test_losses_and_options_that_no_peer_shows(x64):
    """By their definitions; each of these numbers, wrong by 0.1 %, was found by no other test."""
    small, v = 1e-3 * Y, 0.01 * SOFT
    units = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 2.5) for x in (Z, Y)]
    spread = np.maximum(v, 0.005)
    soft = Q * np.log(Q / np.exp(log_softmax(Y)))
    pairs = [
        (losses.squared_hinge(Z, SIGNS), np.maximum(0, 1 - SIGNS * Z) ** 2),
        (losses.boundary_loss(P, Y), (P * Y).mean(-1)),
        (losses.cosine_distance(Z, Y, epsilon=2.5), 1 - (units[0] * units[1]).sum(-1)),
        (
            losses.mean_absolute_percentage_error(Z, small, epsilon=1e-3),
            100 * (np.abs(Z - small) / np.maximum(np.abs(small), 1e-3)).mean(-1),
        ),
        (
            losses.beta_nll_loss(Z, Y, v, beta=0.3, eps=0.005),
            spread**0.3 * (np.log(spread) + (Z - Y) ** 2 / spread) / 2,
        ),
        (losses.cosine_embedding_loss(Z, Z + 0.1 * Y, -np.ones(5), margin=0.3), cosine(Z, Z + 0.1 * Y) - 0.3),
        (
            losses.distillation_loss(Y, LOG_Q, INDEX, alpha=0.3),
            0.3 * soft.sum(-1) - 0.7 * log_softmax(Y)[np.arange(5), INDEX],
        ),
    ]
    for ours, expected in pairs:
        np.testing.assert_allclose(ours, expected, rtol=1e-10)


def log_softmax(z):
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
