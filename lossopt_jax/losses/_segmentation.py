"""Losses of masks: overlap of a predicted region with the true one, and distance to its boundary."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from lossopt_jax._core import NONNEGATIVE, POSITIVE, Range, Scalar, as_compute, axes_of, check_scalar, complaint
from lossopt_jax.losses._arithmetic import event_mean, expm1
from lossopt_jax.losses._lift import Labels, Reals, Unit, Values, check_values, loss
from lossopt_jax.losses._margins import Encoding, positive_part, signed_targets
from lossopt_jax.losses._softmax import softmax

Reduction = Literal["mean", "sum", "none"]
Classes = Literal["present", "all"]

_REDUCTIONS = {"mean": lambda x: jnp.mean(x, -1), "sum": lambda x: jnp.sum(x, -1), "none": lambda x: x}


_SHARES = Values(low=0, high=1)
_CHANCES = Values(low=0, high=1 + 1e-3)  # a softmax rounds


def _checked(
    name: str, given: Any, wanted: Any, where: Any, activation: str | None, **scalars: tuple[Any, Range]
) -> Any:
    """Predictions, NaN for an example with a traced number out of range, targets and where."""
    predictions, targets = jnp.asarray(given), jnp.asarray(wanted)
    if not jnp.issubdtype(predictions.dtype, jnp.floating):
        got = f"{predictions.dtype}"
        raise TypeError(complaint(name, "predictions", "be floating", got, "cast with .astype(jnp.float32)"))
    if targets.shape != predictions.shape:
        must = f"have the shape of predictions, {predictions.shape}"
        raise ValueError(complaint(name, "targets", must, f"{targets.shape}", "nothing broadcasts"))
    for argument, (value, within) in scalars.items():
        check_scalar(name, argument, value, within=within)
    if where is not None:
        where = jnp.asarray(where)
        if where.dtype != jnp.bool_:
            raise TypeError(complaint(name, "where", "be boolean", f"{where.dtype}", "compare, as in weights > 0"))
        if where.shape != predictions.shape:
            must = f"have the shape of predictions, {predictions.shape}"
            raise ValueError(complaint(name, "where", must, f"{where.shape}", "jnp.broadcast_to it"))
    predictions, targets = as_compute(predictions), as_compute(targets)
    dtype = jnp.promote_types(predictions.dtype, targets.dtype)
    predictions, targets = predictions.astype(dtype), targets.astype(dtype)
    looked_at = [("targets", wanted, targets, _SHARES)]
    looked_at += [] if activation else [("predictions", given, predictions, _CHANCES)]
    for argument, array, values, expects in looked_at:
        if not check_values(name, argument, array, expects, where):
            broken = expects.broken(values, tuple(range(1, values.ndim)), where)
            mark = jnp.where(broken, jnp.nan, 1.0).astype(dtype)
            predictions = predictions * jnp.expand_dims(mark, tuple(range(1, values.ndim)))
    return predictions, targets, where


def _missed(p: Any, q: Any, targets: Any, axes: Any, where: Any, alpha: Any, beta: Any, smooth: Any) -> jax.Array:
    """1 − (TP + s) / (TP + α FP + β FN + s) as the quotient of what is wrong; 0 where nothing is there."""
    if where is not None:
        p, q, targets = (jnp.where(where, x, 0.0) for x in (p, q, targets))
    present = 1.0 if where is None else where.astype(p.dtype)
    both = jnp.sum(p * targets, axes)
    wrong = alpha * jnp.sum(p * (present - targets), axes) + beta * jnp.sum(q * targets, axes)
    whole = both + wrong + smooth
    nothing = whole == 0
    return jnp.where(nothing, 0.0, wrong) / jnp.where(nothing, 1.0, whole)


def _chances(predictions: jax.Array, activation: str | None, where: Any) -> tuple[jax.Array, jax.Array]:
    """p and 1 − p; what is out is not looked at."""
    if where is not None:
        seen = jnp.any(where, -1, keepdims=True) if activation == "softmax" else where
        predictions = jnp.where(seen, predictions, 0.0)
    if activation == "softmax":
        predictions = jax.nn.softmax(predictions, -1)
    elif activation == "sigmoid":
        return jax.nn.sigmoid(predictions), jax.nn.sigmoid(-predictions)
    return predictions, 1 - predictions


def _flag(name: str, **flags: Any) -> None:
    for argument, value in flags.items():
        if not isinstance(value, bool):
            raise TypeError(complaint(name, argument, "be True or False", f"{value!r}"))


def _per_class(
    name: str, predictions: Any, targets: Any, where: Any, apply_softmax: bool, axis: Any, **options: Any
) -> tuple[jax.Array, jax.Array]:
    """What is missed of each class, and targets as they count."""
    scalars = {k: (v, NONNEGATIVE) for k, v in options.items()}
    _flag(name, apply_softmax=apply_softmax)
    shape = jnp.shape(predictions)
    activation = ("sigmoid" if shape[-1:] == (1,) else "softmax") if apply_softmax else None
    predictions, targets, where = _checked(name, predictions, targets, where, activation, **scalars)
    if predictions.ndim < 2 or not predictions.shape[-1]:
        must = "have a batch axis first and at least one class last"
        raise ValueError(complaint(name, "predictions", must, f"shape {predictions.shape}"))
    axes = tuple(range(1, predictions.ndim - 1)) if axis is None else axes_of(name, axis, predictions.ndim)
    missed = _missed(*_chances(predictions, activation, where), targets, axes, where, *options.values())
    return missed, targets if where is None else jnp.where(where, targets, 0.0)


def dice_loss(
    predictions: Any,
    targets: Any,
    *,
    class_weights: Any = None,
    smooth: Scalar = 1.0,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    apply_softmax: bool = True,
    reduction: Reduction = "mean",
    ignore_background: bool = False,
    axis: int | tuple[int, ...] | None = None,
    where: Any = None,
) -> jax.Array:
    """How little predicted regions and true ones overlap, averaged over the classes.

        dice_loss(p, t) = 1 − (TP + s) / (TP + α FP + β FN + s) = (α FP + β FN) / (TP + α FP + β FN + s)
        TP = Σ p t,      FP = Σ p (1 − t),      FN = Σ (1 − p) t

    A class that is neither predicted nor there costs 0, with gradient 0, s = 0 included.

    Args:
      predictions: [N, ..., C], floating: logits, or probabilities with apply_softmax=False.
      targets: [N, ..., C], same shape, one-hot or in [0, 1].
      class_weights: [C], multiplies the loss of each class before the reduction.
      smooth: s ≥ 0.
      alpha: α ≥ 0, the weight of false positives.
      beta: β ≥ 0, the weight of false negatives.
      apply_softmax: whether predictions are logits, of a sigmoid if C = 1.
      reduction: over classes: "mean", "sum", or "none".
      ignore_background: whether class 0 is left out, if there are others.
      axis: the axes of a region; None for all but the first and the last.
      where: [N, ..., C], bool, same shape; False takes an element out of the sums, not of its softmax.

    Returns:
      [N], or [N, C] with reduction "none"; float32 for half-precision input; NaN where a traced target or probability
      of the example is out of range.

    Raises:
      ValueError: shapes do not fit, an unknown reduction, or an option or a concrete target or probability is out of
        range.
      TypeError: predictions are not floating, where or a flag is not bool.

    Example:
      >>> dice_loss(jnp.array([[[1.0, 0.0], [0.5, 0.5]]]), jnp.array([[[1, 0], [0, 1]]]), apply_softmax=False, smooth=0)
      Array([0.26666668], dtype=float32)

    Source: Milletari, Navab & Ahmadi 2016, arXiv:1606.04797.
    Differs from: optax, which adds up half precision as it is, adds an axis to predictions or targets that lack one,
    and refuses apply_softmax=False under jit.
    """
    name = "dice_loss"
    if reduction not in _REDUCTIONS:
        raise ValueError(complaint(name, "reduction", f"be among {sorted(_REDUCTIONS)}", repr(reduction)))
    _flag(name, ignore_background=ignore_background)
    options = {"alpha": alpha, "beta": beta, "smooth": smooth}
    missed, _ = _per_class(name, predictions, targets, where, apply_softmax, axis, **options)
    if class_weights is not None:
        weights, classes = jnp.asarray(class_weights), missed.shape[-1:]
        if weights.shape != classes:
            raise ValueError(complaint(name, "class_weights", f"hold one per class, {classes}", f"{weights.shape}"))
        missed = missed * jnp.broadcast_to(weights.astype(missed.dtype), missed.shape)
    return _REDUCTIONS[reduction](missed[..., 1:] if ignore_background and missed.shape[-1] > 1 else missed)


def multiclass_generalized_dice_loss(
    predictions: Any,
    targets: Any,
    *,
    smooth: Scalar = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    where: Any = None,
) -> jax.Array:
    """Dice loss in which a class weighs the less, the more of the batch it covers.

        multiclass_generalized_dice_loss(p, t) = mean_nc w_c dice_nc,      w_c = C f_c⁻² / Σ_k f_k⁻²,      f_c = Σ t_c

    Classes that the batch lacks have no weight.

    Args:
      predictions: [N, ..., C], floating: logits, or probabilities with apply_softmax=False.
      targets: [N, ..., C], same shape, one-hot or in [0, 1].
      smooth: s ≥ 0 of `dice_loss`.
      apply_softmax: whether predictions are logits, of a sigmoid if C = 1.
      ignore_background: whether class 0 is left out, if there are others.
      where: [N, ..., C], bool, same shape; False takes an element out.

    Returns:
      [], float32 for half-precision input; 0 for an empty batch; NaN if a traced target or probability is out of range.

    Raises:
      ValueError: shapes differ, or smooth or a concrete target or probability is out of range.
      TypeError: predictions are not floating, where or a flag is not bool.

    Example:
      >>> p, t = jnp.array([[[0.5, 0.5], [0.5, 0.5]]]), jnp.array([[[1, 0], [1, 0]]])
      >>> multiclass_generalized_dice_loss(p, t, apply_softmax=False)
      Array(0.2, dtype=float32)

    Source: Sudre et al. 2017, arXiv:1707.03237.
    Differs from: optax, which gives a class that is absent nearly all the weight.
    """
    name = "multiclass_generalized_dice_loss"
    _flag(name, ignore_background=ignore_background)
    options = {"alpha": 0.5, "beta": 0.5, "smooth": smooth}
    missed, counted = _per_class(name, predictions, targets, where, apply_softmax, None, **options)
    size = jnp.sum(counted, tuple(range(counted.ndim - 1)))
    there = size > 0
    least = jnp.min(jnp.where(there, size, jnp.inf), initial=jnp.inf)
    weights = jnp.where(there, jnp.square(least / jnp.where(there, size, jnp.inf)), 0.0)
    weights = weights / jnp.maximum(jnp.sum(weights), 1) * weights.size
    weighted = missed * jnp.broadcast_to(weights, missed.shape)
    return event_mean(jnp.ravel(weighted[..., 1:] if ignore_background and weights.size > 1 else weighted))


def _regions(
    name: str, predictions: Any, targets: Any, where: Any, apply_sigmoid: bool, alpha: Any, beta: Any, smooth: Any
) -> jax.Array:
    """What is missed of one region per example: all axes but the first."""
    _flag(name, apply_sigmoid=apply_sigmoid)
    scalars = {k: (v, NONNEGATIVE) for k, v in {"alpha": alpha, "beta": beta, "smooth": smooth}.items()}
    activation = "sigmoid" if apply_sigmoid else None
    predictions, targets, where = _checked(name, predictions, targets, where, activation, **scalars)
    if not predictions.ndim:
        raise ValueError(complaint(name, "predictions", "have a batch axis", "a scalar"))
    p, q = _chances(predictions, activation, where)
    return _missed(p, q, targets, tuple(range(1, p.ndim)), where, alpha, beta, smooth)


def binary_dice_loss(
    predictions: Any, targets: Any, *, smooth: Scalar = 1.0, apply_sigmoid: bool = True, where: Any = None
) -> jax.Array:
    """How little one predicted region and the true one overlap, of each example.

        binary_dice_loss(p, t) = 1 − (2 TP + 2 s) / (Σ p + Σ t + 2 s)

    Two empty masks cost 0.

    Args:
      predictions: [N, ...], floating: logits, or probabilities with apply_sigmoid=False.
      targets: [N, ...], same shape, in [0, 1].
      smooth: s ≥ 0.
      apply_sigmoid: whether predictions are logits.
      where: [N, ...], bool, same shape; False takes an element out.

    Returns:
      [N], float32 for half-precision input; NaN where a traced target or probability of the example is out of range.

    Raises:
      ValueError: shapes differ, or smooth or a concrete target or probability is out of range.
      TypeError: predictions are not floating, where or apply_sigmoid is not bool.

    Example:
      >>> binary_dice_loss(jnp.array([[1.0, 1.0]]), jnp.array([[1, 0]]), apply_sigmoid=False, smooth=0.0)
      Array([0.33333334], dtype=float32)

    Source: Milletari, Navab & Ahmadi 2016, arXiv:1606.04797.
    Differs from: optax, which always raises with apply_sigmoid=False.
    """
    return _regions("binary_dice_loss", predictions, targets, where, apply_sigmoid, 0.5, 0.5, smooth)


def tversky_loss(
    predictions: Any,
    targets: Any,
    *,
    alpha: Scalar = 0.5,
    beta: Scalar = 0.5,
    smooth: Scalar = 1.0,
    apply_sigmoid: bool = True,
    where: Any = None,
) -> jax.Array:
    """`binary_dice_loss` with false positives and false negatives weighted apart.

        tversky_loss(p, t) = 1 − (TP + s) / (TP + α FP + β FN + s)

    Args:
      predictions: [N, ...], floating: logits, or probabilities with apply_sigmoid=False.
      targets: [N, ...], same shape, in [0, 1].
      alpha: α ≥ 0, the weight of false positives.
      beta: β ≥ 0, the weight of false negatives.
      smooth: s ≥ 0.
      apply_sigmoid: whether predictions are logits.
      where: [N, ...], bool, same shape; False takes an element out.

    Returns:
      [N], float32 for half-precision input; NaN where a traced target or probability of the example is out of range.

    Raises:
      ValueError: shapes differ, or an option or a concrete target or probability is out of range.
      TypeError: predictions are not floating, where or apply_sigmoid is not bool.

    Example:
      >>> p, t = jnp.array([[1.0, 1.0]]), jnp.array([[1, 0]])
      >>> tversky_loss(p, t, alpha=1.0, beta=0.0, smooth=0.0, apply_sigmoid=False)
      Array([0.5], dtype=float32)

    Source: Salehi, Erdogmus & Gholipour 2017, arXiv:1706.05721.
    Differs from: Keras, which weights false negatives with α.
    """
    return _regions("tversky_loss", predictions, targets, where, apply_sigmoid, alpha, beta, smooth)


def focal_tversky_loss(
    predictions: Any,
    targets: Any,
    *,
    alpha: Scalar = 0.3,
    beta: Scalar = 0.7,
    gamma: Scalar = 4 / 3,
    smooth: Scalar = 1.0,
    apply_sigmoid: bool = True,
    where: Any = None,
) -> jax.Array:
    """`tversky_loss` to a power, which turns to small regions or to badly predicted ones.

        focal_tversky_loss(p, t) = tversky_loss(p, t)^(1/γ)

    Gradient: 0 where the Tversky loss is 0.

    Args:
      predictions: [N, ...], floating: logits, or probabilities with apply_sigmoid=False.
      targets: [N, ...], same shape, in [0, 1].
      alpha: α ≥ 0, the weight of false positives.
      beta: β ≥ 0, the weight of false negatives.
      gamma: γ > 0.
      smooth: s ≥ 0.
      apply_sigmoid: whether predictions are logits.
      where: [N, ...], bool, same shape; False takes an element out.

    Returns:
      [N], float32 for half-precision input; NaN where a traced target or probability of the example is out of range.

    Raises:
      ValueError: shapes differ, or an option or a concrete target or probability is out of range.
      TypeError: predictions are not floating, where or apply_sigmoid is not bool.

    Example:
      >>> p, t = jnp.array([[1.0, 1.0]]), jnp.array([[1, 0]])
      >>> focal_tversky_loss(p, t, alpha=1.0, beta=0.0, gamma=0.5, smooth=0.0, apply_sigmoid=False)
      Array([0.25], dtype=float32)

    Source: Abraham & Khan 2018, arXiv:1810.07842, where α weights false negatives.
    """
    name = "focal_tversky_loss"
    check_scalar(name, "gamma", gamma, within=POSITIVE)
    missed = _regions(name, predictions, targets, where, apply_sigmoid, alpha, beta, smooth)
    hit = missed == 0
    return jnp.where(hit, 0.0, jnp.power(jnp.where(hit, 1.0, missed), 1 / gamma))


@loss(task="binary", event=1, logits=True)
def lovasz_hinge(logits: Reals, targets: Reals, encoding: Encoding = "binary"):
    """Convex surrogate of the Jaccard loss of one mask, whose elements are the last axis.

        lovasz_hinge(z, t) = Σ_i max(0, m_i) (Δ_i − Δ_{i−1}),      m = 1 − s z in falling order
        Δ_i = 1 − |true and not among the first i| / |true or among the first i|

    Gradient: −s_i (Δ_i − Δ_{i−1}) inside the margin, 0 from it on.

    Args:
      logits: [..., P], floating, one per element of the mask.
      targets: [..., P], same shape, each one of two numbers.
      encoding: which two: "binary" for 0 and 1, "signed" for −1 and 1.

    Returns:
      [...], float32 for half-precision input; NaN where a traced target is neither.

    Raises:
      ValueError: shapes differ, an unknown encoding, or a concrete target that is neither.
      TypeError: logits are not floating.

    Example:
      >>> lovasz_hinge(jnp.array([2.0, -0.5, 0.5]), jnp.array([1, 0, 0]))
      Array(1., dtype=float32)

    Source: Berman, Triki & Blaschko 2018, arXiv:1705.08790.
    """
    signs = signed_targets("lovasz_hinge", targets, encoding)
    return _lovasz(1 - signs * logits, signs > 0)


@loss("LovaszSoftmax", task="sparse", event=2, logits=None)
def lovasz_softmax_loss(
    probabilities: Reals,
    labels: Labels,
    from_logits: bool = False,
    classes: Classes = "present",
    ignore_index: int | None = None,
):
    """Convex surrogate of the Jaccard loss of each class, averaged over the classes; an image is one example.

        lovasz_softmax_loss(p, y) = mean_c Σ_i m_i (Δ_i − Δ_{i−1}),      m = |[y = c] − p_c| in falling order
        Δ_i = 1 − |c and not among the first i| / |c or among the first i|

    Gradient: ∓(Δ_i − Δ_{i−1}) of each element; 0 where the error is 0.

    Args:
      probabilities: [..., P, C], floating, in [0, 1], of the P elements of an image; logits with from_logits.
      labels: [..., P], integer, in [0, C).
      from_logits: whether predictions are logits, of a softmax; exact then for elements that are sure, too.
      classes: the mean is over the classes "present" in the image, or over "all", of which an absent one costs the
        largest chance that it is given.
      ignore_index: the label of elements that are left out; an image of nothing else costs 0.

    Returns:
      [...], one value per image, float32 for half-precision input; NaN where a traced label of the image is no class
      or a traced probability is none. Flatten a batch into one image for the loss of the batch.

    Raises:
      ValueError: shapes do not fit, there is no class, classes is unknown, or a concrete label or probability is out
        of range.
      TypeError: predictions are not floating, labels not integer, or from_logits is not bool.

    Example:
      >>> p = jnp.array([[0.75, 0.25], [0.5, 0.5]])
      >>> lovasz_softmax_loss(p, jnp.array([0, 1]))
      Array(0.4375, dtype=float32)

    Source: Berman, Triki & Blaschko 2018, arXiv:1705.08790.
    """
    if classes not in ("present", "all"):
        must = "be among ['all', 'present']"
        raise ValueError(complaint("lovasz_softmax_loss", "classes", must, repr(classes)))
    if from_logits:
        surprise, chance = softmax(probabilities, probabilities.ndim - 1)
        missed = -expm1(-surprise)
    else:
        none = jnp.any((probabilities < 0) | (probabilities > 1), (-2, -1), keepdims=True)
        chance = probabilities * jnp.where(none, jnp.nan, 1.0).astype(probabilities.dtype)
        missed = 1 - chance
    true = labels[..., None] == jnp.arange(chance.shape[-1], dtype=labels.dtype).reshape((1,) * labels.ndim + (-1,))
    errors = jnp.where((labels >= 0)[..., None], jnp.where(true, missed, chance), -1.0)
    costs = _lovasz(jnp.swapaxes(errors, -1, -2), jnp.swapaxes(true, -1, -2))
    if classes == "all":
        return event_mean(costs)
    present = jnp.any(true, -2)
    count = jnp.maximum(jnp.sum(present, -1), 1).astype(costs.dtype)
    return jnp.sum(jnp.where(present, costs, 0.0), -1) / count


def _lovasz(errors: jax.Array, true: jax.Array) -> jax.Array:
    """The Lovász extension of the Jaccard loss over the last axis, of errors of which those below 0 count as 0.

        Δ_i − Δ_{i−1} = 1 / U_i where i is true, else I_i / (U_i (U_i − 1)); of an empty region 1 for the first, then 0
        I_i = |true and not among the first i|,      U_i = |true or among the first i|

    As differences of Δ they would lose all their digits in a large mask.
    """
    order = jnp.argsort(-jax.lax.stop_gradient(errors), -1)
    errors, true = jnp.take_along_axis(errors, order, -1), jnp.take_along_axis(true, order, -1)
    count = jnp.sum(true, -1, keepdims=True)
    left = (count - jnp.cumsum(true, -1)).astype(errors.dtype)
    union = (count + jnp.cumsum(~true, -1)).astype(errors.dtype)
    step = jnp.where(true | (union == 1), 1.0, left / jnp.maximum(union - 1, 1)) / union
    return jnp.sum(positive_part(errors) * step, -1)


@loss(task="binary", event=1, logits=False)
def boundary_loss(probabilities: Unit, distances: Reals):
    """Mean distance to the true boundary of what is predicted, whose elements are the last axis.

        boundary_loss(p, φ) = mean_i p_i φ_i

    Args:
      probabilities: [..., P], floating, in [0, 1].
      distances: [..., P], same shape: φ, the signed distance to the boundary, negative inside the true region.

    Returns:
      [...], float32 for half-precision input, least where the prediction is the true region; NaN where a traced
      probability is none.

    Raises:
      ValueError: shapes differ, or a concrete probability is out of range.
      TypeError: probabilities are not floating.

    Example:
      >>> boundary_loss(jnp.array([1.0, 1.0, 0.5]), jnp.array([-1.0, 1.0, 2.0]))
      Array(0.33333334, dtype=float32)

    Source: Kervadec et al. 2019, arXiv:1812.07032.
    """
    return event_mean(probabilities * distances)
