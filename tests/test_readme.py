"""The README's commands are the ones that the continuous integration runs."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SET_UP = (
    'python -m pip install -e ".[demo]" && python -m lossopt_jax',
    'python -m pip install -e ".[test]" && python -m pytest',
)


def commands():
    blocks = re.findall(r"```(?:sh|bash)?\n(.*?)```", README, re.DOTALL)
    return tuple(line for block in blocks for line in block.splitlines() if line.startswith("python -m pip install -e"))


def test_the_readme_holds_the_two_commands():
    assert commands() == SET_UP


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_ci_runs_the_commands_of_the_readme():
    listed = subprocess.run(["bash", ".ci/run", "--list"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert tuple(listed.stdout.splitlines()) == commands()


@pytest.mark.parametrize("index", [0, 1])
def test_ci_runs_each_of_them_in_the_main_environment(index):
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf'^(within|tested) main "\$\{{readme\[{index}\]\}}"$', script, re.MULTILINE)


def test_the_workflow_runs_the_commands_of_the_readme():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    steps = re.findall(r"^\s*(?:- )?run: (.*)$", workflow, re.MULTILINE)
    assert set(commands()) <= set(steps)


def test_every_file_that_the_readme_links_to_is_there():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
