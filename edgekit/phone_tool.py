"""`benchmark_model` on this side: the user's own file, or one that is fetched once and held against its SHA-256.

adb://SERIAL?benchmark_model=~/android/benchmark_model
adb://SERIAL?benchmark_model=https://HOST/android_aarch64_benchmark_model#sha256=HASH
"""

import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from edgekit import files
from edgekit.errors import DeviceError, UsageError

CHUNK, STALL_S = 1 << 16, 30.0
MOST_BYTES = 200_000_000  # it takes some 5 MB


def is_url(text: str) -> bool:
    return text.startswith(("https://", "http://"))


def here(text: str, address: str) -> Path:
    """Where the program's file stands. Raises UsageError where there is none, or it was not fetched yet."""
    if not is_url(text):
        path = Path(text).expanduser()
        if not path.is_file():
            raise UsageError(f"benchmark_model is {text!r}: no such file here")
        return path
    path = _cached(text)
    if not path.is_file():
        raise UsageError(f"benchmark_model was not fetched yet: edgekit device setup '{address}'")
    return path


def fetch(text: str, progress: Callable[[str, float], None]) -> Path:
    """The file at the address, fetched where it is not here yet. Raises DeviceError, for another hash too."""
    path = _cached(text)
    if path.is_file():
        return path
    url, _, wanted = text.partition("#sha256=")
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part:
        try:
            with urllib.request.urlopen(url, timeout=STALL_S) as answer, part.open("wb") as stream:
                total, done = int(answer.headers.get("Content-Length") or 0), 0
                while data := answer.read(CHUNK):
                    done += len(data)
                    if done > MOST_BYTES:
                        raise DeviceError(
                            f"{url} is larger than {MOST_BYTES // 1_000_000} MB: it is no benchmark_model"
                        )
                    stream.write(data)
                    progress("fetching benchmark_model", done / total if total else 0.0)
        except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
            reason = getattr(error, "reason", error)
            raise DeviceError(
                f"{url} cannot be fetched: {reason}; fetch it elsewhere and give its path"
            ) from error
        if (found := files.sha256(part)) != wanted.lower():
            raise DeviceError(f"{url} has the SHA-256 {found} and not {wanted}: replaced, or damaged on its way")
    return path


def _cached(text: str) -> Path:
    _, mark, digest = text.partition("#sha256=")
    if not mark or not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        raise UsageError(
            f"benchmark_model is {text!r}: a program from the network needs its SHA-256: URL#sha256=HASH, "
            "as sha256sum tells it for a copy that you trust"
        )
    return files.cache() / "benchmark_model" / digest.lower()
