"""The house is as DESIGN says: imports point one way, plug-ins stand alone, help starts fast."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each module of edgekit/ may import only what stands in the rows before its own, or its own package.
ORDER = (
    "__init__ errors units files integers",
    "schema plugins requires quiet toml",
    "drawing",
    "preprocess measure stats operators processor",
    "benchmark_model",
    "transport inventory lock",
    "preflight",
    "runtimes",
    "trainspec group",
    "prunespec",
    "artifact recipe",
    "checkpoint result flatbuffer mil",
    "data models",
    "train",
    "export",
    "lower",
    "parity xnnpack dissect sparse",
    "sensitivity profile patches",
    "search",
    "repair",
    "calibrate equalize adaround biases",
    "quantize",
    "qat coreml",
    "convert device inputs",
    "agent visit snippet",
    "stable",
    "bench",
    "together",
    "prune",
    "phone phone_tool",
    "remote phone_shell phone_device",
    "provision check mac",
    "report",
    "gate",
    "runs keras_model",
    "keras_source",
    "source subject",
    "benchstage prunestage",
    "pipeline",
    "jobs grid",
    "sweep",
    "cli __main__",
)
ROW = {name: number for number, row in enumerate(ORDER) for name in row.split()}


def modules() -> list[Path]:
    return sorted((ROOT / "edgekit").rglob("*.py"))


def top(path: Path) -> str:
    relative = path.relative_to(ROOT / "edgekit")
    return relative.parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """The top-level modules of edgekit that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "edgekit":
            found |= {alias.name for alias in node.names if alias.name in ROW}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("edgekit."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("edgekit.")}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_point_one_way(path: Path) -> None:
    own = top(path)
    assert own in ROW, f"{own} has no place in the import order"
    wrong = {name for name in imported(path) - {own} if ROW[name] >= ROW[own] and name not in same_row(own)}
    assert not wrong, f"{own} imports {sorted(wrong)}, which stand after it"


def same_row(name: str) -> set[str]:
    """Neighbours may import each other; a cycle between them would fail on import."""
    return set(ORDER[ROW[name]].split()) - {name}


@pytest.mark.parametrize(
    "path",
    [p for kind in ("converters", "devices") for p in sorted((ROOT / kind).glob("*.py"))],
    ids=lambda p: p.name,
)
def test_a_plug_in_imports_edgekit_and_no_other_plug_in(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert not [name for name in names if name.split(".")[0] in ("converters", "devices", "recipes", "tests")]


def test_the_three_folders_are_no_packages() -> None:
    assert not [str(p) for kind in ("converters", "devices", "recipes") for p in (ROOT / kind).glob("__init__.py")]


def loaded_by(*words: str) -> set[str]:
    """The modules that a command line loads."""
    code = "import sys; from edgekit.cli import main; main(sys.argv[1:]); print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_help_loads_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "scipy", "PIL", "tqdm", "rich", "argparse", "ai_edge_litert", "coremltools", "onnx"}
    heavy |= {"matplotlib", "timm"}
    assert not loaded_by("--help") & heavy


def test_compare_and_bench_need_no_torch() -> None:
    heavy = {"torch", "torchvision", "sklearn", "coremltools", "onnx", "litert_torch", "matplotlib", "timm"}
    code = "import edgekit.cli.bench, edgekit.bench, edgekit.report, edgekit.runs, edgekit.data, edgekit.device\n"
    code += (
        "import sys; from edgekit import plugins; plugins.load('devices', 'local'); print('\\n'.join(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not set(done.stdout.split()) & heavy


def test_files_are_short() -> None:
    """DESIGN says mostly 60-250 lines; the agent is one program by design."""
    long = {p.name: n for p in modules() if (n := len(p.read_text(encoding="utf-8").splitlines())) > 350}
    assert not long


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    text = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    rows = text.partition("## What happens when")[2].partition("\n## ")[0].splitlines()
    cells = [line.strip("|").rpartition("|")[2] for line in rows if line.startswith("| ")]
    named = [part for cell in cells for part in cell.split(";") if "`" in part]
    assert len(named) > 25
    for part in named:
        files_, _, tests = part.partition(":")
        paths = [ROOT / f"tests/test_{name}.py" for name in re.findall(r"`(\w+)`", files_)]
        there = re.findall(r"def (test_\w+)", "".join(path.read_text(encoding="utf-8") for path in paths))
        for words in re.findall(r"`(\w+)`", tests):
            assert any(words in name for name in there), part
