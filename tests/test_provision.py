"""`edgekit device setup` over SSH with stand-ins for wheels: it asks, can be said again, mends, and clears up.

With the real wheels: tests/test_pi.py.
"""

import json
import shlex
import shutil
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from edgekit import provision
from edgekit.cli import main
from edgekit.cli.terminal import Terminal
from tests.ssh_servers import Server, know, serving, tools, user
from tests.test_devices import agents_left

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="sets up Linux machines")
LITERT = version("ai-edge-litert")  # that of this machine is taken


def wheel(folder: Path, name: str, number: str, text: str = "", *, needs: str = "") -> None:
    """A wheel of one package whose module `interpreter` holds *text*."""
    package, folder_ = name.replace("-", "_"), f"{name.replace('-', '_')}-{number}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n" + (
        f"Requires-Dist: {needs}\n" if needs else ""
    )
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{package}-{number}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{package}/__init__.py", "")
        archive.writestr(f"{package}/interpreter.py", text)
        archive.writestr(f"{folder_}/METADATA", metadata)
        archive.writestr(f"{folder_}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder_}/RECORD", "")


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A machine with this Python, called `board`."""
    home, place = tmp_path / "home", tmp_path / "board"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("EDGEKIT_DEVICES", str(home / "devices.toml"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    wheel(tmp_path / "wheels", "ai-edge-litert", LITERT, "class Interpreter: pass", needs="numpy")
    wheel(tmp_path / "wheels", "numpy", "2.4.0")
    key = user(home)
    environment = {"PATH": tools(place / "bin", python3=f'exec {shlex.quote(sys.executable)} "$@"')}
    with serving(Server(place, {**environment, "HOME": str(place)}, key)) as server:
        know(home, server.port, server.host_key.export_public_key().decode().strip())
        (home / "devices.toml").write_text(f'[board]\naddress = "ssh://127.0.0.1:{server.port}"\n')
        yield server
    assert agents_left(str(place)) == []


def setup(capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> str:
    assert main(["device", "setup", "board", *words]) == status
    got = capsys.readouterr()
    return got.out if status == 0 else got.err


def test_it_asks_installs_and_goes(
    board: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions: list[str] = []
    answers = [False, True, False, True]

    def confirm(self: Terminal, question: str) -> bool:
        questions.append(question)
        return answers.pop(0)

    monkeypatch.setattr(Terminal, "confirm", confirm)
    folder, address = board.home / ".edgekit", f"ssh://127.0.0.1:{board.port}"
    setup(capsys, status=2)
    assert not (folder / "site").exists()
    assert f"installed ai-edge-litert {LITERT}, numpy 2.4.0" in setup(capsys)
    assert len(list((folder / "site").iterdir())) == 1
    assert list((folder / "cache").iterdir()) == []  # the wheels are unpacked, and gone
    received = board.received
    assert f"{address}: is set up already: ai-edge-litert {LITERT}" in setup(capsys)
    assert board.received == received
    setup(capsys, "--remove", status=2)
    assert folder.is_dir()
    assert f"{address}: {folder} is gone" in setup(capsys, "--remove")
    assert not folder.exists()
    assert [question.partition(" (")[0] for question in questions] == [
        *[f"{address}: install ai-edge-litert {LITERT}, numpy 2.4.0"] * 2,
        *[f"remove {folder} from {address}?"] * 2,
    ]


@pytest.mark.parametrize("damage", ["note", "site", "half"])
def test_what_is_damaged_is_set_up_anew(board: Server, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    folder = board.home / ".edgekit"
    setup(capsys, "--yes")
    (site,) = (folder / "site").iterdir()
    if damage == "note":
        (folder / "runtime.json").write_text("{")
    elif damage == "site":
        shutil.rmtree(site)
    else:  # it was interrupted
        (folder / "runtime.json").unlink()
        site.rename(f"{site}.part")
    assert "installed" in setup(capsys, "--yes")
    assert "is set up already" in setup(capsys)
    assert list((folder / "site").iterdir()) == [site]


def test_a_newer_runtime_takes_the_place_of_the_old_one(
    board: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    setup(capsys, "--yes")
    (old,) = (board.home / ".edgekit/site").iterdir()
    capsys.readouterr()
    written = json.loads(setup(capsys, "--json", "-"))
    assert written["packages"] == [f"ai_edge_litert-{LITERT}", "numpy-2.4.0"]
    wheel(tmp_path / "wheels", "numpy", "2.4.9")
    shutil.rmtree(tmp_path / "home/.cache")
    assert "numpy 2.4.9" in setup(capsys, "--yes")
    (new,) = (board.home / ".edgekit/site").iterdir()
    assert new != old


def test_a_runtime_that_does_not_start_there_leaves_the_old_one(
    board: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup(capsys, "--yes")
    note = (board.home / ".edgekit/runtime.json").read_text()
    (tmp_path / "wheels" / f"ai_edge_litert-{LITERT}-py3-none-any.whl").unlink()
    broken = "raise ImportError('libLiteRt.so: wrong ELF class')"
    wheel(tmp_path / "wheels", "ai-edge-litert", LITERT, broken, needs="numpy")
    wheel(tmp_path / "wheels", "numpy", "2.4.9")
    shutil.rmtree(tmp_path / "home/.cache")
    said = setup(capsys, "--yes", status=1)
    assert "does not work there: ImportError: libLiteRt.so: wrong ELF class" in said
    assert (board.home / ".edgekit/runtime.json").read_text() == note
    assert Path(board.home / ".edgekit/site").is_dir()


def test_no_wheels_here_and_no_internet(board: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(tmp_path / "wheels")
    said = setup(capsys, "--yes", status=1)
    assert f"ssh://127.0.0.1:{board.port}: the wheels for it cannot be fetched here: ERROR: No matching" in said
    assert not (board.home / ".edgekit/site").exists()


def test_a_disk_too_small_for_the_runtime(
    board: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = "import shutil; shutil.disk_usage = lambda path: type('', (), {'free': 40_000_000})\n"
    monkeypatch.setattr("edgekit.provision.UNPACK", short + provision.UNPACK)
    assert "the runtime takes 50 MB, and 40 MB are free" in setup(capsys, "--yes", status=1)
    assert list((board.home / ".edgekit/site").iterdir()) == []
