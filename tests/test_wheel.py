"""The wheel holds everything and works in an empty folder, without the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Without isolation: the build backend is among the test tools, so nothing is fetched.
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (found,) = out.glob("edgekit-*.whl")
    return found


def test_it_holds_recipes_converters_devices_and_the_page(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "edgekit/recipes/quickstart.toml",
        "edgekit/converters/tflite.py",
        "edgekit/converters/coreml.py",
        "edgekit/converters/onnx.py",
        "edgekit/devices/local.py",
        "edgekit/devices/fake.py",
        "edgekit/devices/_agent.py",
        "edgekit/report/page.html",
        "edgekit/report/vendor/plot.umd.min.js",
        "edgekit/report/vendor/plot.LICENSE",
    } <= names
    assert {name.split("/")[0] for name in names} == {"edgekit", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}


def test_it_works_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Installed into a fresh environment that borrows the dependencies of this one."""
    environment = tmp_path / "env"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    own = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "borrowed.pth").write_text("\n".join(own) + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def edgekit(*words: str) -> str:
        done = subprocess.run(
            [environment / "bin" / "edgekit", *words],
            cwd=empty,
            env=clean,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import edgekit; print(edgekit.__file__)"],
        cwd=empty,
        env=clean,
        check=True,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(packages))
    assert "quickstart" in edgekit("list", "recipes")
    assert "tflite" in edgekit("list", "targets")
    assert edgekit("show", "quickstart") == (ROOT / "recipes" / "quickstart.toml").read_text(encoding="utf-8")
    assert "local" in edgekit("list", "devices")
