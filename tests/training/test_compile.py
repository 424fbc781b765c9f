"""Names become objects, or an error that says what to write instead; all before anything is traced."""

import functools

import jax.numpy as jnp
import optax
import pytest
from problems import linear, weights

import lossopt_jax as lo
from lossopt_jax.keras import loss as keras_loss
from lossopt_jax.keras import losses as keras_losses
from lossopt_jax.keras import metrics as keras_metrics
from lossopt_jax.keras import optimizers as keras_optimizers


def compiled(**arguments):
    return lo.compile(linear, **{"optimizer": "rmsprop", "loss": "mean_squared_error", **arguments})


def test_the_page_by_name():
    program = lo.compile(linear, optimizer="rmsprop", loss="binary_crossentropy", metrics=["accuracy"])
    assert program.optimizer == lo.optimizers.rmsprop(0.001)
    assert program.objective.name == "binary_crossentropy"
    assert list(program.metrics) == ["accuracy"]


def test_the_page_configured():
    program = lo.compile(
        linear,
        optimizer=keras_optimizers.RMSprop(lr=0.001),
        loss=keras_losses.binary_crossentropy,
        metrics=[keras_metrics.binary_accuracy],
    )
    by_name = lo.compile(linear, optimizer="rmsprop", loss="bce", metrics=["binary_accuracy"])
    p, y = jnp.array([[0.2], [0.9]]), jnp.array([[0.0], [1.0]])
    assert jnp.array_equal(program.objective(p, y), by_name.objective(p, y))
    assert program.metrics == by_name.metrics


@pytest.mark.parametrize("name", ["Mean_Squared_Error", "MSE", "mean squared error", "MSELoss"])
def test_spelling_is_free(name):
    assert compiled(loss=name).objective.name == "mean_squared_error"


def test_arguments_stand_in_the_string():
    program = compiled(optimizer="adamw(weight_decay=0.1, learning_rate=0.01)")
    assert program.optimizer == lo.optimizers.adamw(0.01, weight_decay=0.1)


def test_a_recipe_itself_gets_its_customary_rate():
    assert compiled(optimizer=lo.optimizers.sgd).optimizer == lo.optimizers.sgd(0.01)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "adamm"}, ValueError, "did you mean 'adam'"),
        ({"optimizer": "adam(lr=0.1)"}, ValueError, "lr"),
        ({"optimizer": "adam(learning_rate=__import__('os'))"}, ValueError, "literal"),
        ({"optimizer": lo.optimizers}, TypeError, "init and update"),
        ({"optimizer": "sgd(-1.0)"}, ValueError, "learning_rate must be ≥ 0"),
        ({"loss": "msee"}, ValueError, "did you mean"),
        ({"loss": None}, ValueError, "loss must be given"),
        ({"loss": ["mse", "mae"]}, ValueError, "single loss"),
        ({"loss": "mse(delta=1.0)"}, ValueError, "arguments of loss"),
        ({"loss": lambda y_true, y_pred: y_pred}, ValueError, "lossopt_jax.keras.loss"),
        ({"loss": 3}, TypeError, "name or a function"),
        ({"metrics": ["accurcy"]}, ValueError, "did you mean 'accuracy'"),
        ({"metrics": ["accuracy"]}, ValueError, "accuracy"),
        ({"metrics": [3]}, TypeError, "names or metrics"),
        ({"loss": "bce", "metrics": ["sparse_categorical_accuracy"]}, ValueError, "sparse_categorical_accuracy"),
        ({"loss": "sigmoid_binary_cross_entropy", "from_logits": False}, ValueError, "take logits"),
        ({"loss": "bce(from_logits=True)", "from_logits": False}, ValueError, "said once"),
        ({"from_logits": 1}, TypeError, "from_logits"),
    ],
)
def test_refused(arguments, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        compiled(**arguments)


def test_a_metric_may_stand_alone():
    assert list(compiled(metrics="mae").metrics) == ["mean_absolute_error"]


def test_two_metrics_of_one_name_have_two_keys():
    assert list(compiled(metrics=["mae", "mae"]).metrics) == ["mean_absolute_error", "mean_absolute_error_2"]


@pytest.mark.parametrize(
    ("loss", "logits"),
    [
        ("bce", False),
        ("bce(from_logits=True)", True),
        ("sigmoid_binary_cross_entropy", True),
        ("softmax_cross_entropy", True),
        ("mse", None),
        (functools.partial(lo.losses.binary_crossentropy, from_logits=True), True),
        (functools.partial(keras_losses.binary_crossentropy, from_logits=True), True),
    ],
)
def test_logits_are_known(loss, logits):
    assert compiled(loss=loss).objective.logits is logits


def test_logits_are_said_once_for_loss_and_metrics():
    program = compiled(loss="bce", metrics=["accuracy"], from_logits=True)
    # a logit of 0.3 is a probability above one half
    assert program.metrics["accuracy"](jnp.array([[0.3]]), jnp.array([[1.0]])) == 1


def test_a_users_loss_in_keras_order():
    wrapped = keras_loss(lambda y_true, y_pred: (y_true - 2 * y_pred)[:, 0])
    program = compiled(loss=wrapped)
    assert program.objective(jnp.ones((2, 1)), jnp.zeros((2, 1))).tolist() == [-2.0, -2.0]
    assert wrapped(jnp.zeros((2, 1)), jnp.ones((2, 1))).tolist() == [-2.0, -2.0]


def test_a_users_loss_that_reduces_is_refused(line):
    program = compiled(loss=lambda prediction, target: jnp.mean((prediction - target) ** 2))
    with pytest.raises(ValueError, match="one value per example"):
        program.train_step(program.init(weights(3, 1)), line)


def test_predictions_without_a_last_axis_are_read_as_one_column(line):
    x, y = line
    flat = lo.compile(lambda p, x: linear(p, x)[:, 0], optimizer="sgd", loss="mse")
    column = lo.compile(linear, optimizer="sgd", loss="mse")
    state = flat.init(weights(3, 1))
    assert flat.evaluate(state, (x, y[:, 0])) == column.evaluate(state, (x, y))
    assert "(N, 1)" in flat.describe()


def test_a_missing_axis_is_an_error_not_a_broadcast(line):
    x, y = line
    program = compiled()
    with pytest.raises(ValueError, match=r"\(50, 1\).*\(50,\)|\(50,\).*\(50, 1\)"):
        program.train_step(program.init(weights(3, 1)), (x, y[:, 0]))


def test_float_class_labels_are_refused(classes):
    x, y = classes
    program = compiled(loss="sparse_categorical_crossentropy")
    with pytest.raises(TypeError, match="integer"):
        program.train_step(program.init(weights(2, 3)), (x, y.astype("float32")))


def test_describe_says_what_became_of_each_name():
    text = compiled(loss="scce", metrics=["acc"], optimizer="adam").describe()
    for word in ("scale_by_adam", "sparse_categorical_crossentropy", "accuracy", "state"):
        assert word in text


def test_foreign_optimizers_are_welcome(line):
    program = compiled(optimizer=optax.adam(1e-2))
    ours = compiled(optimizer=lo.optimizers.adam(1e-2))
    params = weights(3, 1)
    theirs, _ = program.train_step(program.init(params), line)
    mine, _ = ours.train_step(ours.init(params), line)
    assert jnp.allclose(theirs.params["w"], mine.params["w"], atol=1e-7)
