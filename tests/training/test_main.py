"""`python -m lossopt_jax`, as it is called: what it prints, writes, and refuses."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

import lossopt_jax as lo
from lossopt_jax.__main__ import main
from lossopt_jax.training._problems import RECIPES, accepts, own_table, pose, shipped

PICTURES = ("loss", "range_test", "rates")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "pictures"


@pytest.fixture
def rows():
    """Sixty rows of two features; a label, a measurement, and text in a column of its own."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 2))
    return [
        {
            "size": f"{a:.4f}",
            "weight": f"{b:.4f}",
            "town": "Ulm" if a > 0 else "Bonn",
            "kind": ("bird", "cat", "dog")[int(a > 0) + int(b > 0.5)],
            "price": f"{3 * a - b + 7:.4f}",
        }
        for a, b in x
    ]


def write(path, rows, *columns):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def refused(capsys, *arguments):
    """The one line on standard error with which a call is refused."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    printed = capsys.readouterr()
    assert exit_.value.code == 2
    assert printed.out == ""
    assert printed.err.startswith("lossopt_jax: ")
    assert printed.err.count("\n") == 1
    return printed.err


def table_of(text):
    """The cells of the printed table, by problem."""
    below = text.split("─\n")[-1].split("\n\n")[0]
    return {cells[0]: cells for cells in (re.split(r" {2,}", line.strip()) for line in below.splitlines())}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--problem", "iris"], "invalid choice: 'iris'"),
        (["--optimizer", "adamm"], "did you mean 'adam'"),
        (["--loss", "binary_crossentropie"], "did you mean 'binary_crossentropy'"),
        (["--problem", "digits", "--loss", "mean_squared_error"], "must fit digits, a multiclass problem"),
        (["--problem", "diabetes", "--loss", "bce"], "must fit diabetes, a regression problem"),
        (["--optimizer", "adam(0.1, speed=3)"], "speed"),
        (["--optimizer", "sgd(momentum=2)"], "must be in [0, 1), got 2.0"),
        (["--learning-rate", "fast"], "--learning-rate"),
        (["--learning-rate", "-0.1"], "must be > 0 and finite, or auto, got -0.1"),
        (["--learning-rate", "nan"], "must be > 0 and finite, or auto, got nan"),
        (["--epochs", "0"], "must be ≥ 1, got 0"),
        (["--epochs", "many"], "--epochs"),
        (["--batch-size", "-4"], "must be ≥ 1, got -4"),
        (["--speed", "9"], "--speed"),
        (["--data", "table.csv"], "--data and --target must be given together"),
        (["--target", "price"], "--data and --target must be given together"),
        (["--data", "nowhere.csv", "--target", "y"], "must exist, got 'nowhere.csv'"),
        (["--data", "table.xlsx", "--target", "y"], "must be a .csv or an .npz, got 'table.xlsx'"),
        (["--data", "a.csv", "--target", "y", "--problem", "digits"], "--problem and --data exclude each other"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_that_are_refused(capsys, arguments, says):
    assert says in refused(capsys, *arguments)


def test_a_folder_that_cannot_be_made(capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    assert "taken" in refused(capsys, "--problem", "diabetes", "--out", str(tmp_path / "taken"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "must hold a header and rows"),
        ("a,y\n1,2\n", "must hold 10 rows"),
        ("a,b\n" + "1,2\n" * 20, "must be one of a, b, got 'y'"),
        ("y\n" + "1\n2\n" * 20, "a column of features"),
        ("a,a,y\n" + "1,2,3\n" * 20, "'a' twice"),
        ("a,y\n" + "1,2\n" * 5 + "1,2,3\n" * 5, "must have 2 cells in every row, got 3 in row 7"),
        ("a,y\n" + "1,0\n2,1\n" * 10 + "x,1\n", "column 'a' must hold finite numbers, got 'x' in row 21"),
        ("a,y\n" + "1,0\n2,1\n" * 10 + ",1\n", "column 'a' must hold finite numbers, got '' in row 21"),
        ("a,y\n" + "1,0\n2,1\n" * 10 + "nan,1\n", "got 'nan' in row 21"),
        ("a,y\n" + "1,2.5\n" * 20, "must vary, got 2.5 in every row"),
        (
            "a,y\n" + "1,0.5\n2,1.5\n" * 10 + "3,about 7\n",
            "column 'y' must hold finite numbers, got 'about 7' in row 21",
        ),
        ("a,y\n" + "1,yes\n2,no\n" * 10 + "3,\n", "must have no gaps"),
        (b"a,y\n\xff\xfe,1\n", "must be UTF-8 text"),
    ],
)
def test_tables_that_are_refused(capsys, tmp_path, content, says):
    path = tmp_path / "table.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert says in refused(capsys, "--data", str(path), "--target", "y", "--out", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((20, 2))}, "must be one of x, got 'y'"),
        ({"x": np.ones((19, 2)), "y": np.arange(20)}, "array 'x' must have 20 rows like 'y', got 19"),
        ({"x": np.ones((20, 2)), "y": np.eye(20)}, "must be one value per row, got shape (20, 20)"),
        ({"x": np.array(["a"] * 20), "y": np.arange(20)}, "column 'x' must hold finite numbers, got 'a' in row 1"),
        ({"x": np.ones(20) * 1j, "y": np.arange(20)}, "column 'x' must hold"),
        ({"x": np.array([None] * 20), "y": np.arange(20)}, "without Python objects"),
        ({"x": np.ones((20, 2)), "y": np.arange(20), "n": 3}, "array 'n' must have a row per example"),
    ],
)
def test_arrays_that_are_refused(capsys, tmp_path, arrays, says):
    path = tmp_path / "arrays.npz"
    np.savez(path, **arrays)
    assert says in refused(capsys, "--data", str(path), "--target", "y")


def test_a_file_that_only_claims_to_be_npz(capsys, tmp_path):
    path = tmp_path / "arrays.npz"
    path.write_text("a,y\n1,2\n")
    assert "must be an .npz of plain arrays" in refused(capsys, "--data", str(path), "--target", "y")


def test_text_in_a_feature_and_a_loss_that_does_not_fit(capsys, tmp_path, rows):
    path = write(tmp_path / "pets.csv", rows, "size", "town", "kind")
    assert "column 'town' must hold finite numbers" in refused(capsys, "--data", path, "--target", "kind")
    path = write(tmp_path / "pets.csv", rows, "size", "weight", "price")
    assert "a regression problem" in refused(capsys, "--data", path, "--target", "price", "--loss", "bce")
    path = write(tmp_path / "pets.csv", rows, "size", "weight", "kind")
    assert "a multiclass problem" in refused(capsys, "--data", path, "--target", "kind", "--loss", "mse")


def test_a_refusal_from_the_shell_has_no_traceback(tmp_path):
    command = [sys.executable, "-m", "lossopt_jax", "--data", "nowhere.csv", "--target", "y"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "")
    assert re.fullmatch(r"lossopt_jax: --data: the file must exist, got 'nowhere.csv'; .*\n", run.stderr)


def test_a_table_of_ones_own(capsys, tmp_path, out, rows):
    path = write(tmp_path / "pets.csv", rows, "size", "weight", "kind")
    assert main(["--data", path, "--target", "kind", "--epochs", "20", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    name, loss, optimizer, _, epochs, reached, peer = table_of(printed)["pets"]
    assert (name, loss, optimizer, epochs) == ("pets", "categorical_crossentropy", "adam", "20")
    assert float(reached.removeprefix("accuracy ")) >= 0.8
    assert peer.startswith("LogisticRegression ")
    assert "Epoch 20/20" in printed
    assert str(out) in printed
    assert {path.name for path in out.iterdir()} == {f"pets_{picture}.png" for picture in PICTURES}
    for picture in out.iterdir():
        assert picture.read_bytes().startswith(PNG)
        assert picture.stat().st_size > 20_000


def test_arrays_of_ones_own_and_every_option(capsys, tmp_path, out):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2, 2)).astype(np.float32)
    np.savez(tmp_path / "own.npz", image=x, mean=x.mean((1, 2)), y=x.sum((1, 2))[:, None])
    options = "--optimizer sgd(momentum=0.9) --loss mae --learning-rate 0.02 --epochs 15 --batch-size 16".split()
    assert main(["--data", str(tmp_path / "own.npz"), "--target", "y", "--out", str(out), *options]) == 0
    printed = capsys.readouterr().out
    assert "own: 5 features, 60 examples, 20 held out; regression" in printed
    _, loss, optimizer, rate, epochs, reached, _ = table_of(printed)["own"]
    assert (loss, optimizer, rate, epochs) == ("mae", "sgd(momentum=0.9)", "0.02", "15")
    assert float(reached.removeprefix("mean squared error ")) < 0.25 * x.sum((1, 2)).var()


def test_a_rate_in_the_optimizers_name_is_taken(capsys, tmp_path, out, rows):
    path = write(tmp_path / "pets.csv", rows, "size", "weight", "price")
    call = ["--data", path, "--target", "price", "--epochs", "1", "--out", str(out)]
    assert main([*call, "--optimizer", "adam(learning_rate=0.0125)"]) == 0
    assert table_of(capsys.readouterr().out)["pets"][3] == "0.0125"


def test_a_run_that_has_to_stop_says_so_and_exits_with_1(capsys, tmp_path, out, rows):
    path = write(tmp_path / "pets.csv", rows, "size", "weight", "price")
    call = ["--data", path, "--target", "price", "--epochs", "3", "--out", str(out)]
    assert main([*call, "--optimizer", "sgd", "--learning-rate", "1e30"]) == 1
    printed = capsys.readouterr()
    assert "the loss must stay finite" in printed.err
    assert "Traceback" not in printed.err
    assert "pets" in table_of(printed.out)


@pytest.mark.parametrize("text", ["a;y\n", "a\ty\n", "\ufeffa,y\n"])
def test_separators_and_byte_order_marks(tmp_path, text):
    separator = re.search("[;\t,]", text)[0]
    path = tmp_path / "table.csv"
    path.write_text(text + "".join(f"{i}{separator}{i % 2}\n" for i in range(20)), encoding="utf-8")
    table = own_table(path, "y")
    assert table.x.shape == (20, 1)
    assert table.kind == "binary"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (["no", "yes"] * 20, "binary"),
        ([1, 2] * 20, "binary"),
        ([0, 1, 2, 3] * 10, "multiclass"),
        ([0.5, 1.5] * 20, "regression"),
        (list(range(40)), "regression"),
        ([f"city {i}" for i in range(40)], "multiclass"),
    ],
)
def test_the_task_follows_from_the_target(tmp_path, target, kind):
    np.savez(tmp_path / "t.npz", x=np.arange(40.0), y=np.array(target))
    assert own_table(tmp_path / "t.npz", "y").kind == kind


def test_the_loss_decides_where_a_target_may_be_either(tmp_path):
    np.savez(tmp_path / "t.npz", x=np.arange(40.0), y=np.array([0, 1, 2, 3] * 10))
    table = own_table(tmp_path / "t.npz", "y")
    assert pose(table, None, 0).kind == "multiclass"
    assert pose(table, "mean_squared_error", 0).kind == "regression"
    assert not accepts(table, "binary_crossentropy")


@pytest.mark.parametrize(
    ("loss", "outputs", "target"),
    [
        ("binary_crossentropy", 1, (427,)),
        ("sigmoid_binary_cross_entropy", 1, (427,)),
        ("binary_crossentropy(from_logits=True)", 1, (427,)),
        ("categorical_crossentropy", 2, (427, 2)),
        ("sparse_categorical_crossentropy", 2, (427,)),
        ("softmax_cross_entropy", 2, (427, 2)),
        ("softmax_cross_entropy_with_integer_labels", 2, (427,)),
    ],
)
def test_network_and_target_take_the_shape_the_loss_asks_for(loss, outputs, target):
    problem = pose(shipped("breast_cancer"), loss, 0)
    program = lo.compile(problem.network, loss=loss)
    prediction = program.predict(program.init(problem.params(0)), problem.train[0])
    assert problem.train[1].shape == target
    assert prediction.shape == (target if outputs == 1 else (427, 2))
    probabilities = "logits" not in loss and "sigmoid" not in loss and "softmax" not in loss
    assert bool((prediction >= 0).all()) == probabilities


@pytest.mark.parametrize("name", RECIPES)
def test_a_split_is_standardised_by_its_training_part(name):
    problem = pose(shipped(name), None, 0)
    x = problem.train[0].astype(np.float64)
    varies = x.std(0) > 0
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x[:, varies].std(0), 1, rtol=1e-5)
    assert not np.allclose(problem.held_out[0].mean(0), 0, atol=1e-5)
    assert len(problem.held_out[0]) == round(0.25 * (len(x) + len(problem.held_out[0])))


@pytest.mark.slow
def test_the_three_problems_reach_what_they_must(capsys, out):
    assert main(["--out", str(out)]) == 0
    rows = table_of(capsys.readouterr().out)
    figure = {name: [float(cell.split()[-1]) for cell in cells[-2:]] for name, cells in rows.items()}
    assert figure["breast_cancer"][0] >= 0.95
    assert figure["digits"][0] >= 0.96
    assert figure["diabetes"][0] <= 1.05 * figure["diabetes"][1]
    assert {path.name for path in out.iterdir()} == {f"{name}_{kind}.png" for name in RECIPES for kind in PICTURES}
