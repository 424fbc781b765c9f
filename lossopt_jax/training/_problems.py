"""Data sets for `python -m lossopt_jax`, tables of one's own, and the small networks that learn them."""

import csv
import dataclasses
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from lossopt_jax._core import complaint
from lossopt_jax.training._resolve import resolve_loss

# more distinct whole numbers than this are measurements, not labels
_MOST_CLASSES = 20
_FEWEST_ROWS = 10
_HELD_OUT = 0.25


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What trains well on a kind of problem."""

    loss: str
    optimizer: str
    hidden: tuple[int, ...]
    epochs: int
    batch_size: int = 32


RECIPES = {
    "breast_cancer": Recipe("binary_crossentropy", "rmsprop", (16,), 30),
    "digits": Recipe("categorical_crossentropy", "adam", (128,), 30),
    # 332 noisy examples: most of what a network could add to a straight line is noise, hence the decay
    "diabetes": Recipe("mean_squared_error", "adamw(weight_decay=1.0)", (16,), 30),
}
_OWN = {
    "binary": RECIPES["breast_cancer"],
    "multiclass": RECIPES["digits"],
    "regression": Recipe("mean_squared_error", "adamw", (32,), 60),
}


@dataclasses.dataclass(frozen=True)
class Table:
    """Something to learn from: features [N, D], a target [N] of numbers or text."""

    name: str
    x: np.ndarray
    y: np.ndarray
    recipe: Recipe | None = None

    @property
    def kind(self) -> str:
        """What the target looks like: text and few whole numbers are labels, all else is a measurement."""
        distinct = np.unique(self.y)
        if not _is_text(self.y) and (len(distinct) > _MOST_CLASSES or np.any(distinct != np.round(distinct))):
            return "regression"
        return "binary" if len(distinct) == 2 else "multiclass"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A table split in two, with a network and a loss that fit it.

    Features, and a measured target, are standardised by what the training part knows; `unit` turns a squared error
    back into the target's own units.
    """

    name: str
    kind: str
    recipe: Recipe
    train: tuple[np.ndarray, np.ndarray]
    held_out: tuple[np.ndarray, np.ndarray]
    answers: tuple[np.ndarray, np.ndarray]
    outputs: int
    head: Callable[[jax.Array], jax.Array]
    unit: float

    @property
    def metric(self) -> str:
        """The figure of merit: the share of right answers, or the squared error."""
        return "mean_squared_error" if self.kind == "regression" else "accuracy"

    def params(self, seed: int) -> list[dict[str, jax.Array]]:
        """Layers of variance 1/inputs; a small last one, so that training starts without an opinion."""
        sizes = (self.train[0].shape[1], *self.recipe.hidden, self.outputs)
        keys = jax.random.split(jax.random.key(seed), len(sizes) - 1)
        scales = [1.0] * (len(sizes) - 2) + [0.1]
        return [
            {"kernel": jax.random.normal(key, (m, n)) * float(scale / np.sqrt(m)), "bias": jnp.zeros(n)}
            for key, scale, m, n in zip(keys, scales, sizes[:-1], sizes[1:], strict=True)
        ]

    def network(self, params: list[dict[str, jax.Array]], x: jax.Array) -> jax.Array:
        """Hidden layers, and a head that gives what the loss takes."""
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.silu(x @ layer["kernel"] + layer["bias"])
        return self.head(x @ last["kernel"] + last["bias"])

    def reference(self) -> tuple[str, float]:
        """What scikit-learn's linear model reaches on the same split, in the same metric."""
        from sklearn.linear_model import LinearRegression, LogisticRegression

        regression = self.kind == "regression"
        model = LinearRegression() if regression else LogisticRegression(max_iter=1000)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guess = model.fit(self.train[0], self.answers[0]).predict(self.held_out[0])
        figure = np.mean((guess - self.answers[1]) ** 2) if regression else np.mean(guess == self.answers[1])
        return type(model).__name__, float(figure)


def shipped(name: str) -> Table:
    """A data set that scikit-learn carries."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    return Table(name, data.data, data.target, RECIPES[name])


def kind_of_loss(loss: str) -> str:
    """The kind of problem that a loss is for."""
    task = resolve_loss(loss, None).task or "unknown"
    return {"categorical": "multiclass", "sparse": "multiclass"}.get(task, task)


def accepts(table: Table, loss: str) -> bool:
    """Whether a loss can learn this target: two classes may also be two of many, and numbers be measurements."""
    kind = kind_of_loss(loss)
    measured = table.recipe is None and not _is_text(table.y)
    return kind == table.kind or (kind, table.kind) == ("multiclass", "binary") or (kind == "regression" and measured)


def pose(table: Table, loss: str | None, seed: int) -> Problem:
    """Split a table, standardise it, and shape target and network for the loss.

    Raises:
      ValueError: an unknown loss, or one for another kind of target.
    """
    recipe = table.recipe or _OWN[table.kind]
    if loss is not None:
        if not accepts(table, loss):
            must, got = f"fit {table.name}, a {table.kind} problem", f"{loss!r}, for {kind_of_loss(loss)}"
            raise ValueError(complaint("--loss", "the loss", must, got, f"try {recipe.loss}"))
        recipe = dataclasses.replace(table.recipe or _OWN[kind_of_loss(loss)], loss=loss)
    objective = resolve_loss(recipe.loss, None)
    kind = kind_of_loss(recipe.loss)
    order = np.random.default_rng(seed).permutation(len(table.y))
    parts = np.split(order, [round(_HELD_OUT * len(order))])[::-1]

    mean, spread = _standard(table.x[parts[0]])
    inputs = [((table.x[rows] - mean) / spread).astype(np.float32) for rows in parts]
    if kind == "regression":
        answers = table.y.astype(np.float64)
        mean, spread = _standard(answers[parts[0]])
        unit = float(spread**2)
        targets, outputs, head = ((answers - mean) / spread).astype(np.float32), 1, _single
    else:
        labels, answers = np.unique(table.y, return_inverse=True)
        classes, unit = len(labels), 1.0
        if kind == "binary":
            targets, outputs, head = answers.astype(np.float32), 1, _single if objective.logits else _probability
        else:
            one_hot = objective.task == "categorical"
            targets = np.eye(classes, dtype=np.float32)[answers] if one_hot else answers.astype(np.int32)
            outputs, head = classes, _scores if objective.logits else jax.nn.softmax
    train, held_out = ((part, targets[rows]) for part, rows in zip(inputs, parts, strict=True))
    split = (answers[parts[0]], answers[parts[1]])
    return Problem(table.name, kind, recipe, train, held_out, split, outputs, head, unit)


def _single(scores: jax.Array) -> jax.Array:
    return scores[:, 0]


def _probability(scores: jax.Array) -> jax.Array:
    return jax.nn.sigmoid(scores[:, 0])


def _scores(scores: jax.Array) -> jax.Array:
    return scores


def _standard(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spread = values.std(axis=0)
    return values.mean(axis=0), np.where(spread > 0, spread, 1.0)


def own_table(path: Path, target: str) -> Table:
    """The columns of a .csv file with a header, or the arrays of an .npz file; one of them is the target.

    Raises:
      ValueError: no such file or column, text where numbers belong, too little to learn from.
    """
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise ValueError(complaint("--data", "the file", "be a .csv or an .npz", repr(str(path))))
    if not path.is_file():
        raise ValueError(complaint("--data", "the file", "exist", repr(str(path)), "check the path"))
    columns = readers[path.suffix.lower()](path)
    if target not in columns:
        raise ValueError(complaint("--target", "the column", f"be one of {', '.join(columns)}", repr(target)))
    y = columns.pop(target)
    if y.ndim > 1:
        y = y.reshape(len(y), -1)
        if y.shape[1] != 1:
            raise ValueError(complaint("--target", f"{target!r}", "be one value per row", f"shape {y.shape}"))
        y = y[:, 0]
    # a gap or a slip of the pen among numbers does not make them labels
    if not _is_text(y) or np.mean(np.isfinite(_as_numbers(y))) > 0.5:
        y = _numbers(y, target)
    elif np.any(y == ""):
        raise ValueError(complaint("--target", f"column {target!r}", "have no gaps", "an empty cell"))
    if len(y) < _FEWEST_ROWS or not columns:
        got = f"{len(y)} rows and {len(columns)} other columns"
        raise ValueError(complaint("--data", path.name, f"hold {_FEWEST_ROWS} rows and a column of features", got))
    if len(np.unique(y)) < 2:
        raise ValueError(complaint("--target", f"column {target!r}", "vary", f"{y[0]} in every row"))
    for name, column in columns.items():
        if len(column) != len(y):
            got = f"{len(column)}"
            raise ValueError(complaint("--data", f"array {name!r}", f"have {len(y)} rows like {target!r}", got))
    x = np.concatenate([_numbers(column, name).reshape(len(y), -1) for name, column in columns.items()], axis=1)
    return Table(path.stem, x, y)


def _read_csv(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            delimiter = max(",;\t", key=first.count)
            header, *rows = [[cell.strip() for cell in row] for row in csv.reader(file, delimiter=delimiter) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(complaint("--data", path.name, "be UTF-8 text", str(error))) from None
    except ValueError:
        raise ValueError(complaint("--data", path.name, "hold a header and rows", "an empty file")) from None
    if len(set(header)) < len(header):
        repeated = next(name for name in header if header.count(name) > 1)
        raise ValueError(complaint("--data", path.name, "name its columns apart", f"{repeated!r} twice"))
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            got = f"{len(row)} in row {number}"
            raise ValueError(complaint("--data", path.name, f"have {len(header)} cells in every row", got))
    cells = np.array(rows, dtype=str).reshape(len(rows), len(header))
    return dict(zip(header, cells.T, strict=True))


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (ValueError, AttributeError, TypeError, OSError, EOFError, zipfile.BadZipFile):
        remedy = "write it with np.savez(file, x=…, y=…), without Python objects"
        raise ValueError(complaint("--data", path.name, "be an .npz of plain arrays", "another file", remedy)) from None
    for name, column in columns.items():
        if column.ndim == 0:
            raise ValueError(complaint("--data", f"array {name!r}", "have a row per example", "a single number"))
    return {name: column.astype(str) if column.dtype.kind == "S" else column for name, column in columns.items()}


def _is_text(column: np.ndarray) -> bool:
    return column.dtype.kind == "U"


def _as_numbers(column: np.ndarray) -> np.ndarray:
    """A column as float64, with NaN for text that is no number."""

    def number(cell: str) -> float:
        try:
            return float(cell)
        except ValueError:
            return np.nan

    try:
        return column.astype(np.float64)
    except ValueError:
        return np.array([number(cell) for cell in column.ravel()]).reshape(column.shape)


def _numbers(column: np.ndarray, name: str) -> np.ndarray:
    """A column as float64; the first cell that is no finite number is refused."""
    where, remedy = f"column {name!r}", "encode text as numbers, fill gaps, or drop the column"
    if column.dtype.kind not in "biufU":
        raise ValueError(complaint("--data", where, "hold numbers", f"dtype {column.dtype}", remedy))
    numbers = _as_numbers(column)
    wrong = np.argwhere(~np.isfinite(numbers))
    if wrong.size:
        cell = str(column[tuple(wrong[0])])
        raise ValueError(
            complaint("--data", where, "hold finite numbers", f"{cell!r} in row {wrong[0][0] + 1}", remedy)
        )
    return numbers
