"""scripts/setup-emulated-devices: what it says where it cannot work, and that it does nothing twice."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import adb_devices, emulated

SCRIPT = Path(__file__).parents[1] / "scripts/setup-emulated-devices"
TOOLS = ("sh", "dirname", "mkdir", "cat", "chmod", "mv", "ls", "head", "ln", "awk", "true")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it makes Debian's devices")


def say(folder: Path, *words: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """The script with nothing but TOOLS to be found."""
    place = folder / "bin"
    place.mkdir()
    for name in (*TOOLS, "unshare", "nsenter", "setpriv", "adb"):
        (place / name).symlink_to(shutil.which(name) or "/bin/true")
    environment = {"PATH": str(place), "HOME": str(folder), "PYTHON": sys.executable, **variables}
    return subprocess.run(
        [str(SCRIPT), *words], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("kind", ["arm64", "adbd"])
def test_what_is_missing_is_named(tmp_path: Path, kind: str) -> None:
    done = say(tmp_path, kind)
    wanted = "scripts/setup-emulated-devices: mmdebstrap is missing: apt install mmdebstrap\n"
    assert (done.returncode, done.stderr) == (1, wanted)


def test_another_word_is_named_with_the_choices(tmp_path: Path) -> None:
    done = say(tmp_path, "arm32")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no 'arm32'; choose from arm64 and adbd" in done.stderr


@pytest.mark.arm64
@pytest.mark.adbd
@emulated.needs_arm64
@adb_devices.needs_adbd
def test_what_is_there_is_kept(tmp_path: Path) -> None:
    """Nothing that could make it anew is to be found."""
    folders = {"EDGEKIT_ARM64": str(emulated.FOLDER), "EDGEKIT_ADBD": str(adb_devices.ADBD.parent)}
    before = os.stat(emulated.PYTHON).st_mtime_ns
    done = say(tmp_path, **folders)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"arm64: {folders['EDGEKIT_ARM64']}\nadbd: {folders['EDGEKIT_ADBD']}\n"
    assert os.stat(emulated.PYTHON).st_mtime_ns == before
