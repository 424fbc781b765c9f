"""Who may import whom, what an import may do, and what may stand in a tracked file."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lossopt_jax"
EXTRAS = ("sklearn", "matplotlib", "tqdm", "optax", "flax", "equinox", "keras", "chex", "torch", "hypothesis", "pytest")

BELOW = {
    "_core": set(),
    "kernels": {"_core"},
    "schedules": {"_core"},
    "metrics": {"_core"},
    "losses": {"_core", "kernels"},
    "transforms": {"_core", "kernels"},
    "optimizers": {"_core", "transforms"},
}
BELOW["training"] = {*BELOW}
BELOW["keras"] = BELOW["interop"] = {*BELOW}
BELOW["__init__"] = BELOW["__main__"] = {*BELOW}

MODULES = sorted(PACKAGE.rglob("*.py"))
names = [str(path.relative_to(PACKAGE)) for path in MODULES]
every_module = pytest.mark.parametrize("path", MODULES, ids=names)


def room_of(path):
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imported(path):
    """(dotted name, line, whether at module level) of every import; `from a import b` counts as both a and a.b."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        node
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno, node not in inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}:{node.lineno}: relative import"
            yield node.module, node.lineno, node not in inside
            yield from ((f"{node.module}.{alias.name}", node.lineno, node not in inside) for alias in node.names)


def test_every_room_is_in_the_table():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == BELOW.keys() - {"__init__", "__main__"}


@every_module
def test_rooms_import_only_what_stands_below(path):
    room = room_of(path)
    for name, line, _ in imported(path):
        package, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if package == "lossopt_jax" and target in BELOW and target != room:
            assert target in BELOW[room], f"{path.name}:{line}: {room} imports {target}"


@every_module
def test_only_jax_and_the_standard_library_are_needed_at_import(path):
    allowed = {*sys.stdlib_module_names, "jax", "numpy", "lossopt_jax"}
    foreign = {(name, line) for name, line, top in imported(path) if top and name.split(".")[0] not in allowed}
    assert not foreign


@every_module
def test_the_face_is_not_imported_by_the_rooms(path):
    if room_of(path) in ("__main__", "__init__"):
        pytest.skip("stands above the face")
    for name, line, _ in imported(path):
        _, _, rest = name.partition(".")
        known = not rest or rest.split(".")[0] in BELOW
        assert name.split(".")[0] != "lossopt_jax" or known, f"{path.name}:{line}: {name} comes from the face"


@every_module
def test_files_are_private_and_named_by_topic(path):
    public = {"__init__.py", "__main__.py", "keras/losses.py", "keras/metrics.py", "keras/optimizers.py"}
    inside = path.relative_to(PACKAGE)
    assert path.name.startswith("_") or str(inside) in public
    assert path.stem.strip("_") not in {"utils", "util", "misc", "common", "helpers", "helper"}


def test_import_changes_no_configuration_and_touches_no_device():
    code = f"""
import json, logging, sys, warnings
import jax
from jax._src import xla_bridge
before = dict(jax.config.values), list(warnings.filters), list(logging.getLogger().handlers), set(sys.modules)
import lossopt_jax
after = dict(jax.config.values), list(warnings.filters), list(logging.getLogger().handlers)
new = {{name.split(".")[0] for name in set(sys.modules) - before[3]}}
print(json.dumps({{
    "same": before[:3] == after,
    "backends": xla_bridge.backends_are_initialized(),
    "extras": sorted(new & set({EXTRAS!r})),
}}))
"""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"same": True, "backends": False, "extras": []}


def landing_files():
    """What git tracks or would take in; without git there is nothing to look at."""
    git = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    run = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in run.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_tracked_files_name_no_machine_and_leave_no_loose_ends():
    # in pieces, so that this file does not find itself
    loose = ["type: " + "ignore", "TO" + "DO", "FIX" + "ME", "XX" + "X"]
    places = ["/ho" + "me/", "/ro" + "ot/", "/wo" + "rk/", "/Us" + "ers/", "/op" + "t/", "C:" + "\\"]
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "conda" + ".anaconda.org", "download.pytorch" + ".org"]
    words = re.compile("|".join(re.escape(word) for word in [*loose, *places, *hosts]))
    found = []
    for path in landing_files():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {match[0]}"
            for number, line in enumerate(lines, 1)
            if (match := words.search(line))
        ]
    assert not found
