"""`python -m lossopt_jax`: train on real data, or on a table of one's own, and draw what happened."""

import argparse
import dataclasses
import importlib.util
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import lossopt_jax as lo
from lossopt_jax.training import _pictures
from lossopt_jax.training._problems import RECIPES, Problem, accepts, own_table, pose, shipped

SEED = 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """One line on standard error, exit code 2."""
        self.exit(2, f"lossopt_jax: {' '.join(message.split())}\n")


def learning_rate(text: str) -> float | None:
    """A positive number; None for "auto"."""
    rate = None if text == "auto" else float(text)
    if rate is not None and not 0 < rate < math.inf:
        raise argparse.ArgumentTypeError(f"must be > 0 and finite, or auto, got {text}")
    return rate


def positive(text: str) -> int:
    """A whole number from 1."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be ≥ 1, got {text}")
    return int(text)


def parser() -> Parser:
    """The options."""
    p = Parser(prog="python -m lossopt_jax", description=__doc__)
    p.add_argument("--problem", choices=[*RECIPES, "all"], default="all", help="which data set (default: all)")
    p.add_argument("--optimizer", metavar="NAME", help="a name, with arguments: 'sgd(momentum=0.9)'")
    p.add_argument("--loss", metavar="NAME", help="a name; without --problem, all problems it fits are trained")
    p.add_argument("--learning-rate", type=learning_rate, metavar="FLOAT|auto", help="default: auto, by a range test")
    p.add_argument("--epochs", type=positive, metavar="N")
    p.add_argument("--batch-size", type=positive, metavar="N")
    p.add_argument("--out", type=Path, default=Path("lossopt_demo"), metavar="FOLDER", help="where the pictures go")
    p.add_argument("--data", type=Path, metavar="FILE", help="a table of your own: .csv with a header, or .npz")
    p.add_argument("--target", metavar="NAME", help="the column of --data to predict")
    return p


def prepare(options: argparse.Namespace) -> list[tuple[Problem, lo.training.Program]]:
    """Everything that can be refused, before anything is trained.

    Raises:
      ValueError: data, names or arguments that do not fit; the message is meant for the user.
    """
    missing = [name for name in ("sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"{' and '.join(missing)} must be installed; pip install 'lossopt_jax[demo]'")
    if (options.data is None) != (options.target is None):
        raise ValueError("--data and --target must be given together: the table and the column to predict")
    if options.data is not None and options.problem != "all":
        raise ValueError("--problem and --data exclude each other; drop one")
    if options.data is not None:
        tables = [own_table(options.data, options.target)]
    elif options.problem != "all":
        tables = [shipped(options.problem)]
    else:
        tables = [table for table in map(shipped, RECIPES) if options.loss is None or accepts(table, options.loss)]
    changes = {name: getattr(options, name) for name in ("optimizer", "epochs", "batch_size")}
    changes = {name: value for name, value in changes.items() if value is not None}
    prepared = []
    for table in tables:
        problem = pose(table, options.loss, SEED)
        recipe = dataclasses.replace(problem.recipe, **changes)
        problem = dataclasses.replace(problem, recipe=recipe)
        program = lo.compile(problem.network, optimizer=recipe.optimizer, loss=recipe.loss, metrics=[problem.metric])
        prepared.append((problem, program))
    options.out.mkdir(parents=True, exist_ok=True)
    return prepared


def named_rate(optimizer: str) -> float | None:
    """The rate in an optimizer's name, such as "adam(learning_rate=0.01)", if it has one."""
    _, positional, arguments = lo.optimizers.registry.parse(optimizer)
    return arguments.get("learning_rate", positional[0] if positional else None)


def train(problem: Problem, program: lo.training.Program, rate: float | None, out: Path) -> tuple[list[str], bool]:
    """Find the rate, fit, evaluate, draw: the problem's row of the table, and whether training got through."""
    recipe = problem.recipe
    start = program.init(problem.params(SEED))
    test = lo.training.find_lr(program, start, problem.train, batch_size=recipe.batch_size)
    rate = named_rate(recipe.optimizer) if rate is None else rate
    rate, source = (test.suggestion, "range test") if rate is None else (rate, "given")

    def fit(rate: float, progress: bool) -> tuple[lo.training.TrainState, lo.training.History]:
        state = lo.set_hyperparams(start, learning_rate=rate)
        with warnings.catch_warnings():
            # a run that stops says so in its history, which is printed below
            warnings.simplefilter("ignore", RuntimeWarning)
            return program.fit(
                state,
                problem.train,
                epochs=recipe.epochs,
                batch_size=recipe.batch_size,
                validation_data=problem.held_out,
                seed=SEED,
                progress=progress,
            )

    sizes = f"{len(problem.train[0])} examples, {len(problem.held_out[0])} held out"
    print(f"\n{problem.name}: {problem.train[0].shape[1]} features, {sizes}; {problem.kind}")
    print(f"{recipe.loss}, {recipe.optimizer}, learning rate {rate:.3g} ({source})")
    state, history = fit(rate, progress=True)
    if history.stopped:
        print(history.stopped, file=sys.stderr)
    reached = program.evaluate(state, problem.held_out)[problem.metric] * problem.unit

    what = f"{recipe.loss}, {recipe.optimizer}, batches of {recipe.batch_size}"
    if history:
        _pictures.draw_losses(out / f"{problem.name}_loss.png", problem.name, f"{what}, rate {rate:.2g}", history)
    _pictures.draw_range_test(out / f"{problem.name}_range_test.png", problem.name, what, test, rate)
    before = program.evaluate(start, problem.train)["loss"]
    rates = {"too low": test.suggestion / 100, "right": test.suggestion, "too high": float(test.rates[-1])}
    runs = {name: (value, fit(value, progress=False)[1].get("loss", [])) for name, value in rates.items()}
    _pictures.draw_rates(out / f"{problem.name}_rates.png", problem.name, what, recipe.epochs, before, runs)

    peer, figure = problem.reference()
    kind = problem.metric.replace("_", " ")
    row = [problem.name, recipe.loss, recipe.optimizer, f"{rate:.3g}", str(len(history.get("loss", [])))]
    return [*row, f"{kind} {reached:.4g}", f"{peer} {figure:.4g}"], history.stopped is None


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a header, columns aligned."""
    header = ("problem", "loss", "optimizer", "rate", "epochs", "held out", "reference, same split")
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["─" * width for width in widths], *rows]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0; 1 if a run had to stop; 2 with one line on standard error for what cannot be begun."""
    options_of = parser()
    options = options_of.parse_args(arguments)
    try:
        prepared = prepare(options)
    except (ValueError, TypeError, OSError) as error:
        options_of.error(str(error))
    results = [train(problem, program, options.learning_rate, options.out) for problem, program in prepared]
    print(f"\n{table([row for row, _ in results])}\n\npictures: {options.out.resolve()}")
    return 0 if all(fine for _, fine in results) else 1


if __name__ == "__main__":
    sys.exit(main())
