"""What a board brings, what of LiteRT runs there, and what is said where nothing does."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgekit import preflight, runtimes
from edgekit.errors import DeviceError
from edgekit.preflight import Facts, Python
from edgekit.transport import Ended, Feed, ignore
from edgekit.transport.local import LocalTransport


def python(version: str, bits: int = 64, numpy: str = "") -> Python:
    return Python(path=f"/usr/bin/python{version}", version=version, bits=bits, numpy=numpy)


PI5 = Facts(
    home="/home/pi",
    folder="/home/pi/.edgekit",
    system="Linux",
    machine="aarch64",
    bits=64,
    glibc="2.36",
    features=("asimd", "asimddp", "atomics"),
    free_bytes=10**10,
    writable=True,
    executable=True,
    pythons=(python("3.11.2"),),
    runtime={},
)
BULLSEYE = replace(PI5, glibc="2.31", pythons=(python("3.9.2"),))
PI2 = replace(PI5, machine="armv7l", bits=32, pythons=(python("3.11.2", 32, numpy="1.24.2"),))


@pytest.mark.parametrize(
    ("facts", "requirement", "version", "tag"),
    [
        (PI5, "ai-edge-litert>=2.1.2,<2.4", "3.11.2", "manylinux_2_36_aarch64"),
        (replace(PI5, pythons=(python("3.9.2"), python("3.12.1"))), "ai-edge-litert>=2.1.2,<2.4", "3.12.1", ""),
        (
            replace(PI5, pythons=(python("3.9.2"),)),
            "ai-edge-litert>=2.0,<=2.1.0",
            "3.9.2",
            "manylinux2014_aarch64",
        ),
        (BULLSEYE, "ai-edge-litert>=2.0,<=2.1.0", "3.9.2", "manylinux_2_31_aarch64"),
        (replace(PI5, machine="x86_64"), "ai-edge-litert>=2.1.2,<2.4", "3.11.2", "manylinux2014_x86_64"),
        (PI2, "tflite-runtime>=2.13,<2.15", "3.11.2", "manylinux_2_34_armv7l"),
        # A 64-bit kernel under a 32-bit system, as Raspberry Pi OS has it.
        (replace(PI2, machine="aarch64"), "tflite-runtime>=2.13,<2.15", "3.11.2", "linux_armv7l"),
    ],
)
def test_what_fits(facts: Facts, requirement: str, version: str, tag: str) -> None:
    found = runtimes.choose(facts, "board")
    assert (found.requirements[0], found.python.version) == (requirement, version)
    assert not tag or tag in found.tags
    assert not [tag for tag in found.tags if "2_37" in tag]  # newer than the system


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(PI5, pythons=(python("3.15.0"),)), "no LiteRT for Python 3.15.0 .* 3.10 to 3.14 is needed"),
        (replace(BULLSEYE, pythons=(python("3.14.0"),)), "Python 3.9 to 3.13, or a newer system, is needed"),
        (replace(PI5, glibc="2.24"), "glibc 2.24 is older than 2.27"),
        (replace(PI5, glibc=""), "its C library is not glibc"),
        (replace(PI5, system="Darwin", machine="arm64"), "it runs Darwin: install ai-edge-litert there yourself"),
        (replace(PI2, machine="armv6l"), "no LiteRT for armv6l with 32 bits: a 64-bit system"),
        (replace(PI2, pythons=(python("3.13.1", 32, "1.26"),)), "Python 3.9 to 3.11 .* has Python 3.13.1"),
        (replace(PI2, pythons=(python("3.11.2", 32, "2.1.0"),)), "NumPy before 2, and this has 2.1.0"),
        (replace(PI2, pythons=(python("3.11.2", 32),)), "sudo apt install python3-numpy"),
        (replace(PI2, glibc="2.31"), "needs glibc 2.34, and this has 2.31"),
    ],
)
def test_what_does_not_fit_says_why_and_what_helps(facts: Facts, said: str) -> None:
    with pytest.raises(DeviceError, match=f"^board: .*{said}"):
        runtimes.choose(facts, "board")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (replace(PI5, writable=False), "cannot be written: name another folder"),
        (replace(PI5, executable=False), "mounted noexec"),
        (replace(PI5, free_bytes=10**8), "100 MB are free .* 300 MB are needed"),
        (replace(PI5, pythons=()), "no Python 3: sudo apt install python3"),
        (replace(PI5, pythons=(), wanted="/opt/py"), "/opt/py is no Python 3: ADDRESS.python=/path"),
        (replace(PI5, pythons=(python("3.7.3"),)), "its Python 3.7.3 is too old: 3.9"),
    ],
)
def test_faults_come_with_their_cure(facts: Facts, said: str) -> None:
    assert preflight.faults(PI5) == []
    (fault,) = preflight.faults(facts)
    assert re.search(said, fault)


def test_this_machine_is_looked_at(tmp_path: Path) -> None:
    facts = preflight.read(LocalTransport(), f"{tmp_path}/there's a blank")
    assert facts.folder == f"{tmp_path}/there's a blank"
    assert facts.writable
    assert facts.executable
    assert facts.free_bytes
    assert facts.pythons
    assert preflight.faults(facts) == []


NOTE = {
    "python": "/usr/bin/python3",
    "version": "3.11.2",
    "site": "/home/pi/.edgekit/site/0123",
    "packages": ["x-1"],
}


@pytest.mark.parametrize(
    ("changes", "pythons", "sites", "stands"),
    [
        ({}, {"3.11.2": "/usr/bin/python3"}, ["0123"], True),
        ({}, {"3.11.9": "/usr/bin/python3"}, ["0123"], True),
        ({}, {"3.13.1": "/usr/bin/python3"}, ["0123"], False),  # the system was upgraded
        ({}, {"3.11.2": "/opt/python3"}, ["0123"], False),
        ({}, {"3.11.2": "/usr/bin/python3"}, [], False),  # somebody removed it
        ({"site": None}, {"3.11.2": "/usr/bin/python3"}, ["0123"], False),
    ],
)
def test_what_setup_left_stands_or_is_set_up_anew(
    changes: dict[str, str], pythons: dict[str, str], sites: list[str], stands: bool
) -> None:
    note = {**NOTE, **changes}
    found = tuple(Python(path=path, version=version, bits=64) for version, path in pythons.items())
    assert preflight._runtime(json.dumps(note), sites, found) == (note if stands else {})


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"python": "/usr/bin/python3"}'])
def test_a_damaged_note_of_setup_is_none(text: str) -> None:
    assert preflight._runtime(text, ["0123"], ()) == {}


class Closed(LocalTransport):
    """As a user whose shell is /usr/sbin/nologin sees it."""

    def run(self, command: str, *, limit_s: float, feed: Feed = ignore, **options: Any) -> Ended:
        feed(b"This account is currently not available.\n")
        return Ended(status=1, stderr="Could not chdir to home directory /nonexistent: No such file or directory")


def test_a_user_whose_shell_runs_nothing() -> None:
    said = r"no commands run there for this user: This account is currently not available; name another one$"
    with pytest.raises(DeviceError, match=said):
        preflight.read(Closed())


def test_a_folder_that_cannot_be_written_is_one_fault() -> None:
    [fault] = preflight.faults(replace(PI5, writable=False, executable=False, free_bytes=0))
    assert "cannot be written" in fault
