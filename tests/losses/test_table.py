"""docs/losses.md is true: what it names is there, and every loss is named."""

import re
from pathlib import Path

from lossopt_jax import losses

TABLE = (Path(__file__).resolve().parents[2] / "docs" / "losses.md").read_text(encoding="utf-8")


def test_the_table_names_every_loss_and_nothing_else():
    rows = [line for line in TABLE.splitlines() if line.startswith("|")][2:]
    named = set(re.findall(r"`(\w+)`", " ".join(row.split("|")[5] for row in rows)))
    assert {name for name in named if not hasattr(losses, name)} == set()
    assert set(losses.registry) - named == set()


def test_the_peers_have_what_the_table_says():
    import keras
    import optax

    rows = [[cell.strip() for cell in line.split("|")[2:4]] for line in TABLE.splitlines() if line.startswith("|")][2:]
    for room, column in ((optax.losses, 0), (keras.losses, 1)):
        for name in ", ".join(row[column] for row in rows).replace("–", "").split(", "):
            assert not name or hasattr(room, name), name
