"""Files that are whole or absent: written beside their name, then renamed; and their hashes."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.errors import UsageError


def cache() -> Path:
    """The user's folder for what can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgekit"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside *path* to write a file or a folder to; it takes *path*'s place at the end.

    When the body raises, the temporary path is removed and *path* is as it was. A link stays: what it points
    to is replaced. A folder is replaced by a folder only: raises IsADirectoryError instead of losing it.
    """
    if path.is_symlink():
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: several writers choose the format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    remove(temporary)
    try:
        yield temporary
        if path.is_dir() and temporary.is_file():
            raise IsADirectoryError(errno.EISDIR, "is a folder, and is not replaced by a file", str(path))
        if path.is_dir():
            _replace_folder(path, temporary)
        else:
            os.replace(temporary, path)
    except BaseException as error:
        remove(temporary)
        if isinstance(error, OSError) and error.filename in (None, str(temporary), temporary):
            error.filename = str(path)  # a full disk does not say where
        raise


def _replace_folder(path: Path, new: Path) -> None:
    """Put *new* in the place of a folder, which no single renaming can do; the old one comes back on failure."""
    old = path.with_name(f".{path.stem}.{os.getpid()}.old{path.suffix}")
    remove(old)
    os.rename(path, old)
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(old, path)
        raise
    remove(old)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_output(path: Path, *, folder: bool = False) -> None:
    """Raise UsageError now where a file, or files in a folder, could not be written after the long work."""
    if folder and path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file: name a folder")
    if not folder and path.is_dir():
        raise UsageError(f"{path} is a folder: name a file")
    if path.name == "run.json":
        raise UsageError(f"{path}: run.json is the state of a run: give another name")
    nearest = path if folder or path.exists() else path.parent
    while not nearest.exists():
        nearest = nearest.parent
    if not os.access(nearest, os.W_OK) or (nearest != path and not nearest.is_dir()):
        raise UsageError(f"{path} cannot be written: {nearest} is not writable; give another place")


def write_text(path: Path, text: str) -> None:
    if path.exists() and not path.is_file() and not path.is_dir():  # /dev/null, /dev/stdout: nothing to replace
        path.write_text(text, encoding="utf-8")
        return
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, compact: bool = False) -> None:
    """Write *value* as JSON: indented for readers, or *compact* for long lists of numbers."""
    layout: Any = {"separators": (",", ":")} if compact else {"indent": 1}
    write_text(path, json.dumps(value, ensure_ascii=False, **layout) + "\n")


def members(path: Path) -> list[Path]:
    """The file itself, or every file of a folder in a fixed order."""
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def size_bytes(path: Path) -> int:
    return sum(member.stat().st_size for member in members(path))


def sha256(path: Path) -> str:
    """The SHA-256 of a file; of a folder, that of its files' relative names and hashes."""
    if path.is_dir():
        listing = "".join(f"{sha256(p)}  {p.relative_to(path).as_posix()}\n" for p in members(path))
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of(value: Any) -> str:
    """The SHA-256 of a JSON-like value, the same for equal values in any key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
