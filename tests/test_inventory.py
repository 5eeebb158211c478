"""A user's names for devices, and the options of an address."""

from pathlib import Path

import pytest

from edgekit import inventory
from edgekit.cli import main
from edgekit.device import open_device, split
from edgekit.errors import UsageError
from edgekit.inventory import Options


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "devices.toml"
    monkeypatch.setenv("EDGEKIT_DEVICES", str(path))
    return path


def test_a_name_stands_for_an_address(devices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    devices.write_text(
        '[shelf]\naddress = "ssh://pi@shelf"\nfolder = "/mnt/a b"\n[desk]\naddress = "fake://pi5"\n'
    )
    assert split("shelf") == ("ssh://pi@shelf?folder=/mnt/a%20b", "ssh", "pi@shelf?folder=/mnt/a%20b")
    assert inventory.split("pi@shelf?folder=/mnt/a%20b") == ("pi@shelf", Options(folder="/mnt/a b"))
    assert open_device("desk").info.model == "Raspberry Pi 5 (fake)"
    assert split("local") == ("local", "local", "")
    assert main(["device", "list"]) == 0
    out = capsys.readouterr().out
    assert "ssh://[USER@]HOST[:PORT]" in out
    assert "ssh://pi@shelf?folder=/mnt/a%20b" in out


def test_without_a_file_the_list_says_where_it_goes(devices: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "list"]) == 0
    assert str(devices) in capsys.readouterr().out


def test_a_name_that_is_none_is_told_with_the_nearest(devices: Path) -> None:
    devices.write_text('[kitchen]\naddress = "fake://pi5"\n')
    with pytest.raises(UsageError, match=r"unknown device 'kitchn'.*did you mean 'kitchen'.*devices\.toml"):
        open_device("kitchn")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[a]\n", "address"),
        ('[a]\naddress = "local"\nfoldr = "/x"\n', "foldr"),
        ("[a\n", "devices.toml"),
        ('[local]\naddress = "fake://pi5"\n', "is an address already"),
        ("a = 1\n", "a"),
    ],
)
def test_a_faulty_file(devices: Path, text: str, fault: str) -> None:
    devices.write_text(text)
    with pytest.raises(UsageError, match=fault):
        open_device("a")


@pytest.mark.parametrize(
    ("rest", "fault"),
    [
        ("pi@a?folder=x", "must begin with / or ~/"),
        ("pi@a?folder=/", "name one of its own"),
        ("pi@a?folder=~/", "name one of its own"),
        ("pi@a?foldr=/x", "unknown option 'foldr'; did you mean 'folder'"),
        ("pi@a?folder", "bad query field"),
    ],
)
def test_options_that_are_none(rest: str, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        inventory.split(rest)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["device", "chek", "local"], "unknown verb 'chek'"),
        (["device", "check"], "takes an address"),
        (["device", "check", "local", "--yes"], "go with `edgekit device setup`"),
        (["device", "list", "local"], "takes no address"),
        (["device", "setup", "fake://pi5"], "needs no setup"),
    ],
)
def test_wrong_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


def test_this_machine_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device", "check", "local"]) == 0
    out = capsys.readouterr().out
    assert "ai-edge-litert 2." in out
    assert "of a tiny model, 1 thread" in out


def test_several_units_are_an_address_each(devices: Path) -> None:
    address = "mac+ssh://me@mac.local?folder=/x/y&unit={}&python=/usr/bin/python3"
    every = tuple(address.format(unit) for unit in ("ALL", "CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE"))
    assert inventory.by_unit(address.format("each")) == every
    assert inventory.by_unit(address.format("CPU_AND_NE,CPU_ONLY,CPU_AND_NE")) == (every[3], every[1])
    assert inventory.by_unit(address.format("CPU_ONLY")) == (address.format("CPU_ONLY"),)
    assert inventory.by_unit("ssh://pi@unit=each") == ("ssh://pi@unit=each",)
    with pytest.raises(UsageError, match=r"unit names 'CPU_ONL'; choose from ALL, .*; did you mean 'CPU_ONLY'"):
        inventory.by_unit(address.format("ALL,CPU_ONL"))
    devices.write_text('[mac]\naddress = "mac+ssh://me@mac"\nunit = "CPU_ONLY,CPU_AND_GPU"\n')
    assert inventory.by_unit("mac") == ("mac+ssh://me@mac?unit=CPU_ONLY", "mac+ssh://me@mac?unit=CPU_AND_GPU")
