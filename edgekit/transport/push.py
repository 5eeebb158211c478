"""Files brought to a device under the name of their SHA-256: once, whole, on from where a lost link left them."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import files, units
from edgekit.errors import DeviceError
from edgekit.transport import LinkLost, Transport, output, reconnect

Progress = Callable[[str, float], None]  # what is being sent, share of all bytes (0 to 1)
PATIENCE_S = 60.0  # for a link to come back
SPARE_BYTES = 50_000_000  # that must stay free beside what is sent
OLD_DAYS = 30  # what was not used for so long goes

# OpenSSL first: it takes the SHA-256 with the processor's own instructions, coreutils in plain C. The others are
# those of a board without it and of a Mac.
SUM = """
sum() {
    line=$(openssl dgst -sha256 -r "$1" 2>/dev/null || sha256sum "$1" 2>/dev/null || shasum -a 256 "$1")
    echo "${line%% *}"
}
"""
# A file that stands under its hash may be damaged all the same: an SD card forgets. Reading it costs little.
LOOK = """
mkdir -p FOLDER && cd FOLDER || exit 1
for name in NAMES; do
    if [ -f "$name" ]; then
        if [ "$(sum "$name")" = "${name%%.*}" ]; then touch "$name"; echo "have $name"; else rm -f "$name"; fi
    fi
    [ ! -f "$name.part" ] || echo "part $name $(wc -c < "$name.part")"
done
find . -type f -mtime +DAYS -exec rm -f {} +
echo "free $(df -Pk . | awk 'NR == 2 { print $4 }')"
"""
FINISH = """
cd FOLDER || exit 1
if [ "$(sum NAME.part)" = HASH ]; then mv NAME.part NAME && echo whole; else rm -f NAME.part; fi
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """A file to bring. *suffix*: what its name ends in there, as some readers want it."""

    source: Path
    sha256: str
    suffix: str = ""

    @property
    def name(self) -> str:
        return f"{self.sha256}{self.suffix}"


def parcel(source: Path, suffix: str | None = None) -> Parcel:
    return Parcel(source=source, sha256=files.sha256(source), suffix=source.suffix if suffix is None else suffix)


def push(
    transport: Transport,
    folder: str,
    parcels: Sequence[Parcel],
    progress: Progress,
    *,
    patience_s: float = PATIENCE_S,
) -> dict[Parcel, str]:
    """Where each file stands there. Those that are there already are not sent again, nor the parts of others.

    Raises DeviceError for a full disk and for a file that arrives damaged twice, LinkLost for a link that does
    not come back within *patience_s*.
    """
    wanted = {one.name: one for one in parcels}
    have, parts, free_bytes = _look(transport, folder, tuple(wanted))
    missing = [one for name, one in wanted.items() if name not in have]
    sizes = {one.name: one.source.stat().st_size for one in missing}
    total = sum(sizes.values())
    needed = total - sum(parts.get(name, 0) for name in sizes) + SPARE_BYTES
    if missing and free_bytes is not None and needed > free_bytes:
        _clear(transport, folder, tuple(wanted))
        _, _, free_bytes = _look(transport, folder, ())
        if free_bytes is not None and needed > free_bytes:
            raise DeviceError(
                f"{transport.address}: {units.size(total)} are to go to {folder}, where {units.size(free_bytes)} "
                "are free: make room, or name another folder: ADDRESS?folder=/path"
            )
    done = 0
    for one in missing:
        size, before = sizes[one.name], done

        def sent(count: int, one: Parcel = one, before: int = before) -> None:
            progress(f"sending {one.source.name}", (before + count) / max(total, 1))

        _bring(transport, folder, one, min(parts.get(one.name, 0), size), sent, patience_s)
        done += size
    return {one: f"{folder}/{one.name}" for one in parcels}


def _bring(
    transport: Transport, folder: str, one: Parcel, offset: int, sent: Callable[[int], None], patience_s: float
) -> None:
    target, damaged, lost = f"{folder}/{one.name}.part", 0, 0
    finish = FINISH.replace("FOLDER", shlex.quote(folder)).replace("HASH", one.sha256).replace("NAME", one.name)
    while True:
        try:
            transport.send(one.source, target, offset=offset, sent=sent)
            if "whole" in output(transport, SUM + finish, limit_s=600.0):
                return
            offset, damaged = 0, damaged + 1
            if damaged == 2:
                raise DeviceError(
                    f"{transport.address}: {one.source.name} arrives damaged there; a bad SD card, or a bad link"
                )
        except LinkLost:
            before = offset
            reconnect(transport, patience_s)
            have, parts, _ = _look(transport, folder, (one.name,))
            if one.name in have:
                return
            offset = parts.get(one.name, 0)
            lost = lost + 1 if offset <= before else 0
            if lost == 3:  # it comes back each time, and brings nothing
                raise


def _look(
    transport: Transport, folder: str, names: tuple[str, ...]
) -> tuple[frozenset[str], dict[str, int], int | None]:
    """Of the names those that are there whole, the sizes of those begun, and the free bytes."""
    script = LOOK.replace("FOLDER", shlex.quote(folder)).replace("DAYS", str(OLD_DAYS))
    text = output(transport, SUM + script.replace("NAMES", " ".join(map(shlex.quote, names))), limit_s=600.0)
    lines = [line.split() for line in text.splitlines()]
    free = [line[1] for line in lines if len(line) == 2 and line[0] == "free" and line[1].isdigit()]
    return (
        frozenset(line[1] for line in lines if len(line) == 2 and line[0] == "have"),
        {line[1]: int(line[2]) for line in lines if len(line) == 3 and line[0] == "part"},
        int(free[0]) * 1024 if free else None,
    )


def _clear(transport: Transport, folder: str, keep: tuple[str, ...]) -> None:
    """Remove what other visits brought."""
    kept = " ".join(f"! -name {shlex.quote(name)} ! -name {shlex.quote(name + '.part')}" for name in keep)
    output(transport, f"find {shlex.quote(folder)} -type f {kept} -exec rm -f {{}} +")
