"""What takes the space in a model file: its constants by type, by kind of operator and by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape

from edgekit import units
from edgekit.artifact import Artifact
from edgekit.convert import Inspection, Part, for_file
from edgekit.errors import ArtifactError, MissingDependency
from edgekit.report.cells import plain_table
from edgekit.report.rows import Row
from edgekit.report.words import count

LARGEST = 30  # layers a file
NEITHER = "the graph, names, labels"
Contents = Mapping[str, Inspection | str]  # by the SHA-256 of the file; text says why it could not be read


def read(artifacts: Sequence[Artifact]) -> Contents:
    """What stands in each file; of one that cannot be read here the reason."""
    found: dict[str, Inspection | str] = {}
    for artifact in artifacts:
        try:
            found[artifact.sha256] = for_file(artifact.path).inspect(artifact.path)
        except (ArtifactError, MissingDependency) as error:
            found[artifact.sha256] = str(error)
    return found


def section(rows: Sequence[Row], contents: Contents) -> str:
    """The page's tables, one for each file that was at hand."""
    found = [_details(row, contents[row.artifact.sha256]) for row in rows if row.artifact.sha256 in contents]
    return "<h3>What takes the space</h3>\n" + "\n".join(found) if found else ""


def _details(row: Row, found: Inspection | str) -> str:
    name = f'<b class="name">{escape(row.name)}</b>'
    if isinstance(found, str):
        return f'<p class="note">{name}: {escape(found)}</p>'
    total, parts = row.artifact.size_bytes, _merged(found.parts)
    rest = total - sum(size_bytes for _, size_bytes in found.weights)
    types = [(dtype, *_size(size_bytes, total)) for dtype, size_bytes in found.weights]
    types += [(NEITHER, *_size(rest, total))] if rest > 0 else []  # some formats pack what they store
    sums: dict[tuple[str, str], list[int]] = {}
    for part in parts:
        sums.setdefault((part.kind or "–", part.dtype), []).append(part.size_bytes)
    kinds = [
        (kind, str(len(sizes)), dtype, *_size(sum(sizes), total))
        for (kind, dtype), sizes in sorted(sums.items(), key=lambda item: -sum(item[1]))
    ]
    layers = [
        (part.layer, part.kind or "–", part.dtype, *_size(part.size_bytes, total)) for part in parts[:LARGEST]
    ]
    told = f": {kinds[0][0]} takes {kinds[0][-1]}" if kinds else ""
    more = f'<p class="facts">The largest {LARGEST} of {len(parts)} layers.</p>' if len(parts) > LARGEST else ""
    tables = (
        plain_table(f"{row.name}: types", ("Stored as", "Size", "Share"), types),
        plain_table(f"{row.name}: kinds of operators", ("Operator", "Count", "Stored as", "Size", "Share"), kinds),
        plain_table(f"{row.name}: layers", ("Layer", "Operator", "Stored as", "Size", "Share"), layers),
    )
    return (
        f'<details class="operators"><summary>{name}, {units.size(total)}{escape(told)}, '
        f"{count(len(parts), 'layer')} with constants</summary>\n{''.join(tables)}{more}</details>"
    )


def _merged(parts: Sequence[Part]) -> list[Part]:
    """One part a layer, stored as its largest is; the largest first."""
    found: dict[tuple[str, str], Part] = {}
    for part in sorted(parts, key=lambda part: -part.size_bytes):
        known = found.get(key := (part.layer, part.kind))
        found[key] = replace(known, size_bytes=known.size_bytes + part.size_bytes) if known else part
    return sorted(found.values(), key=lambda part: -part.size_bytes)


def _size(size_bytes: int, total: int) -> tuple[str, str]:
    return units.size(size_bytes), f"{100 * size_bytes / total:.1f} %"
