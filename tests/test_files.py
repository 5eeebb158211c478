"""Files are whole or absent, and a hash stands for their content."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from edgekit import files
from edgekit.errors import UsageError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_in_a_new_folder(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.tflite"
    with files.replacing(path) as temporary:
        assert temporary.suffix == ".tflite"  # writers choose the format by it
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["model.tflite"]


def test_an_existing_file_stays_until_the_end(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(1)])
@pytest.mark.parametrize("folder", [False, True])
def test_a_failure_leaves_the_old_one(error: BaseException, folder: bool, tmp_path: Path) -> None:
    path = tmp_path / "x.mlpackage"
    inside = path / "inside" if folder else path
    inside.parent.mkdir(exist_ok=True)
    inside.write_text("old")

    def attempt() -> None:
        with files.replacing(path) as temporary:
            if folder:
                temporary.mkdir()
                (temporary / "inside").write_text("half")
            else:
                temporary.write_text("half")
            raise error

    with pytest.raises(type(error)):
        attempt()
    assert inside.read_text() == "old"
    assert names(tmp_path) == ["x.mlpackage"]


def test_a_body_that_writes_nothing_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "inside").write_text("old")
    with pytest.raises(FileNotFoundError), files.replacing(path):
        pass
    assert (path / "inside").read_text() == "old"
    assert names(tmp_path) == ["run"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").touch()
    with files.replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert names(path) == ["new"]
    assert names(tmp_path) == ["run"]


def test_a_folder_comes_back_when_renaming_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, rename = tmp_path / "run", os.rename
    path.mkdir()
    (path / "old").touch()

    def failing(source: Path, target: Path) -> None:
        if source.name.endswith(".part"):
            raise OSError(errno.EIO, "the disk has gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="the disk has gone"), files.replacing(path) as temporary:
        temporary.mkdir()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["run"]


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        left = temporary
    left.mkdir()  # of the same process number
    (left / "half").touch()
    with files.replacing(path) as temporary:
        temporary.write_text("newer")
    assert path.read_text() == "newer"
    assert names(tmp_path) == ["x"]


def test_remove_takes_files_folders_and_links(tmp_path: Path) -> None:
    folder, link = tmp_path / "folder", tmp_path / "link"
    (folder / "inside").mkdir(parents=True)
    link.symlink_to(folder)
    files.remove(link)
    assert names(tmp_path) == ["folder"]
    files.remove(folder)
    files.remove(folder)
    assert names(tmp_path) == []


def test_json_is_utf8_and_ends_in_a_newline(tmp_path: Path) -> None:
    files.write_json(tmp_path / "x.json", {"label": "Straße", "n": [1, 2]})
    assert (tmp_path / "x.json").read_bytes() == '{\n "label": "Straße",\n "n": [\n  1,\n  2\n ]\n}\n'.encode()
    files.write_json(tmp_path / "x.json", {"n": [1, 2]}, compact=True)
    assert (tmp_path / "x.json").read_text() == '{"n":[1,2]}\n'


def test_hash_and_size_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 1000)
    assert files.sha256(path) == hashlib.sha256(b"abc" * 1000).hexdigest()
    assert files.size_bytes(path) == 3000
    assert files.members(path) == [path]


def test_hash_and_size_of_a_folder(tmp_path: Path) -> None:
    def made(name: str, contents: dict[str, str]) -> Path:
        for inside, text in contents.items():
            path = tmp_path / name / inside
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    first = made("a", {"x": "12", "sub/y": "345"})
    assert files.size_bytes(first) == 5
    assert [path.name for path in files.members(first)] == ["y", "x"]
    assert files.sha256(first) == files.sha256(made("b", {"sub/y": "345", "x": "12"}))
    others = [{"x": "12", "sub/y": "346"}, {"x": "12", "sub/z": "345"}, {"x": "12", "y": "345"}, {"x": "12"}]
    hashes = {files.sha256(made(f"other{index}", other)) for index, other in enumerate(others)}
    assert len(hashes | {files.sha256(first)}) == 5


def test_the_hash_of_a_value_knows_no_order_of_keys() -> None:
    assert files.sha256_of({"a": 1, "b": [1, 2]}) == files.sha256_of({"b": [1, 2], "a": 1})
    assert files.sha256_of({"b": [1, 2]}) != files.sha256_of({"b": [2, 1]})
    assert files.sha256_of(1) != files.sha256_of("1")


def test_a_folder_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("a cat")
    with pytest.raises(IsADirectoryError):
        files.write_text(tmp_path / "photos", "{}")
    assert (tmp_path / "photos" / "cat.jpg").read_text() == "a cat"
    assert not list(tmp_path.glob(".*"))


def test_a_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    files.write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "new"


def test_a_device_is_written_to_and_not_replaced() -> None:
    files.write_text(Path("/dev/null"), "nothing")
    assert Path("/dev/null").is_char_device()


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    files.check_output(tmp_path / "new" / "deep" / "report.html")
    files.check_output(tmp_path / "results", folder=True)
    with pytest.raises(UsageError, match="is a folder: name a file"):
        files.check_output(tmp_path)
    with pytest.raises(UsageError, match="is a file: name a folder"):
        files.check_output(tmp_path / "file", folder=True)
    with pytest.raises(UsageError, match="cannot be written"):
        files.check_output(tmp_path / "file" / "report.html")
    with pytest.raises(UsageError, match="the state of a run"):
        files.check_output(tmp_path / "run.json")
