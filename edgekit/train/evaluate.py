"""At the end of a training: what the best model takes for what, as figures and as pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from edgekit import files
from edgekit.train import batches, pictures
from edgekit.train.batches import Feed
from edgekit.train.learner import Learner

CURVES, CONFUSION, EVALUATION = "curves.png", "confusion.png", "evaluation.json"
MADE = (CURVES, CONFUSION, EVALUATION)
BATCH = 256


def evaluate(
    learner: Learner, held_out: Feed, classes: Sequence[str], rows: Sequence[Mapping[str, float]], out: Path
) -> None:
    """Write ``curves.png``, ``confusion.png`` and ``evaluation.json``: the counts [truth][answer] by class."""
    group, count = learner.group, len(held_out.split)
    found, labels = learner.predictions(held_out(batches.in_order(count, BATCH, group.part(count))))
    cells = torch.bincount(labels * len(classes) + found, minlength=len(classes) ** 2)
    matrix = group.total(cells).view(len(classes), -1).cpu().numpy()
    if not group.main:
        return
    files.write_json(out / EVALUATION, {"classes": list(classes), "confusion": matrix.tolist()}, compact=True)
    pictures.curves(rows, out / CURVES)
    pictures.confusion(matrix, classes, out / CONFUSION)
