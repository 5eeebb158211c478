"""The images on which a file answers otherwise than the reference, as thumbnails inside the page."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from typing import NamedTuple

from edgekit.bench import choice
from edgekit.data import Split
from edgekit.errors import UsageError
from edgekit.preprocess import Pixels
from edgekit.report.compare import Comparison, Group
from edgekit.report.rows import Row
from edgekit.report.words import count
from edgekit.result import Predictions, Result

SIDE = 96  # pixels of a thumbnail at most
LOSSLESS = 64  # pixels up to which a thumbnail is stored as it is


@dataclass(frozen=True, kw_only=True, slots=True)
class Flips:
    """*splits*: by the hash of their list, the images that were classified. *limit*: images a file at most."""

    splits: Mapping[str, Split]
    limit: int


class Flip(NamedTuple):
    """An image by its place, and three names of classes."""

    place: int
    truth: str
    before: str
    after: str

    @property
    def kind(self) -> str:
        return "lost" if self.before == self.truth else "gained" if self.after == self.truth else "neither"


KINDS = {"lost": "became wrong", "gained": "became right", "neither": "wrong in another way"}


def find(comparison: Comparison, candidates: Iterable[Split], limit: int, source: str) -> Flips:
    """The images of *source* that the comparison's accuracies were measured on, among *candidates*.

    Raises UsageError where they are none of these.
    """
    wanted = {
        found.images_sha256: len(found.truth)
        for group in comparison.groups
        for row in group.rows
        if row.paired and row.result and (found := row.result.predictions)
    }
    if not wanted:
        raise UsageError(
            "--flips: no file's accuracy was compared with the reference's, so no image can have flipped"
        )
    splits: dict[str, Split] = {}
    for split in candidates:
        for number in {len(split), *wanted.values()}:
            part, sha256 = choice(split, number)
            if sha256 in wanted:
                splits[sha256] = part
        if len(splits) == len(wanted):
            break
    if not splits:
        raise UsageError(
            f"--flips: {source} does not hold the images that accuracy was measured on "
            f"({', '.join(sorted({p.dataset for p in _predictions(comparison)}))}): name those with --data"
        )
    return Flips(splits=splits, limit=limit)


def _predictions(comparison: Comparison) -> Iterable[Predictions]:
    rows = (row for group in comparison.groups for row in group.rows)
    return (row.result.predictions for row in rows if row.result and row.result.predictions)


def flips(reference: Result, other: Result) -> list[Flip]:
    """The images with other answers: first those that became wrong, then those that became right."""
    assert reference.predictions is not None
    assert other.predictions is not None
    labels, own = reference.artifact.labels, other.artifact.labels
    # By name: the two may have the classes in another order. A number without a label is told as it is.
    before = [_name(labels, number) for number in reference.predictions.top_NK[:, 0].tolist()]
    after = [_name(own, number) for number in other.predictions.top_NK[:, 0].tolist()]
    truth = [_name(own, number) for number in other.predictions.truth]
    rows = zip(range(len(truth)), truth, before, after, strict=True)
    found = [Flip(*row) for row in rows if row[2] != row[3]]
    return sorted(found, key=lambda one: list(KINDS).index(one.kind))


def _name(labels: Sequence[str], number: int) -> str:
    return labels[number] if number < len(labels) else f"class {number}"


def section(group: Group, rows: Sequence[Row], found: Flips) -> str:
    """The page's pictures, folded away for each file whose answers differ."""
    base = next((row.result for row in group.rows if row.is_reference), None)
    split = found.splits.get(base.predictions.images_sha256) if base and base.predictions else None
    if base is None or split is None:
        return ""
    each = {row.name: flips(base, row.result) for row in rows if row.result and row.paired and row.paired.flips}
    wanted = sorted({one.place for some in each.values() for one in spread(some, found.limit)})
    if not wanted:
        return "<h3>Images that flipped</h3>\n<p>None: every answer is the reference's.</p>"
    thumbnails = dict(zip(wanted, map(thumbnail, split.read(wanted)), strict=True))
    parts = [_details(name, some, group.reference, found.limit, split, thumbnails) for name, some in each.items()]
    return "<h3>Images that flipped</h3>\n" + "\n".join(parts)


def spread(some: Sequence[Flip], limit: int) -> list[Flip]:
    """*limit* of them at even distances, so that each sort, and each class, has its share."""
    return [some[i * len(some) // limit] for i in range(limit)] if len(some) > limit else list(some)


def thumbnail(pixels_HWC: Pixels) -> str:
    """The picture as a data URI."""
    from PIL import Image

    image, stream = Image.fromarray(pixels_HWC), BytesIO()
    image.thumbnail((SIDE, SIDE))
    kind = "png" if max(image.size) <= LOSSLESS else "jpeg"
    image.save(stream, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _details(
    name: str, some: Sequence[Flip], reference: str, limit: int, split: Split, thumbnails: Mapping[int, str]
) -> str:
    kinds = [one.kind for one in some]
    told = ", ".join(f"{kinds.count(kind)} {words}" for kind, words in KINDS.items() if kind in kinds)
    shown = f" Shown are {limit}, of each sort in proportion." if len(some) > limit else ""
    cards = "".join(
        _card(one, reference, name, split.ids[one.place], thumbnails[one.place]) for one in spread(some, limit)
    )
    return (
        f'<details class="flips"><summary><b class="name">{escape(name)}</b>: {count(len(some), "image")} of '
        f"{len(split):,} flipped: {told}.{shown}</summary>\n<ul>{cards}</ul></details>"
    )


def _card(one: Flip, reference: str, name: str, image: str, uri: str) -> str:
    answers = (
        f"<dt>truth</dt><dd>{escape(one.truth)}</dd><dt>{escape(reference)}</dt><dd>{escape(one.before)}</dd>"
    )
    answers += f"<dt>{escape(name)}</dt><dd>{escape(one.after)}</dd>"
    return (
        f'<li class="{one.kind}"><img src="{uri}" alt="{escape(image)}" width="{SIDE}" height="{SIDE}">'
        f"<small>{escape(image)}</small><dl>{answers}</dl></li>"
    )
