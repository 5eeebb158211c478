import argparse
from collections.abc import Mapping

from edgekit.cli.terminal import add_json, table, write_json

EXAMPLES = """examples:
  edgekit doctor
"""
# What a feature is called, the extra that brings it, and the packages that it needs.
FEATURES = (
    ("bench and compare", "", ("numpy", "pillow", "scipy", "rich", "tqdm")),
    ("run tflite files", "", ("ai-edge-litert",)),
    ("train", "train", ("torch", "torchvision", "safetensors", "scikit-learn", "matplotlib")),
    ("models of timm", "timm", ("timm",)),
    ("convert to tflite", "tflite", ("torch", "flatbuffers", "ai-edge-quantizer", "ai-edge-litert")),
    ("tflite, rare operators", "tflite-full", ("litert-torch",)),
    ("convert Keras models", "keras", ("tensorflow", "keras")),
    ("convert to coreml", "coreml", ("torch", "coremltools")),
    ("convert to onnx", "onnx", ("torch", "onnx", "onnxscript")),
    ("run onnx files", "onnx", ("onnxruntime",)),
    ("prune", "prune", ("torch", "torch-pruning")),
    ("devices over ssh", "ssh", ("asyncssh",)),
)

# Programs that are no packages: the feature, its program, and how to get it.
PROGRAMS = (("devices over adb", "adb", "sudo apt install adb (macOS: brew install android-platform-tools)"),)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import platform
    from importlib.metadata import PackageNotFoundError, version
    from shutil import which

    from edgekit import __version__

    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return ""

    rows = []
    for feature, extra, packages in FEATURES:
        found = {name: installed(name) for name in packages}
        missing = [name for name, number in found.items() if not number]
        cure = f"pip install 'edgekit[{extra}]'" if extra else f"pip install {' '.join(missing)}"
        rows.append(
            {
                "feature": feature,
                "state": "missing" if missing else "ok",
                "packages": found,
                "cure": cure if missing else "",
            }
        )
    for feature, program, cure in PROGRAMS:
        path = which(program) or ""
        row = {"feature": feature, "state": "ok" if path else "missing", "packages": {program: path}}
        rows.append({**row, "cure": "" if path else cure})
    machine = {
        "edgekit": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": _gpu(),
    }
    if args.json != "-":
        print("\n".join(f"{name:8} {value}" for name, value in machine.items()), end="\n\n")
        print(table(("feature", "state", "packages, or the cure"), [_row(row) for row in rows]))
    write_json(args.json, {**machine, "features": rows})
    return 0


def _row(row: Mapping[str, object]) -> tuple[str, str, str]:
    packages = row["packages"]
    assert isinstance(packages, dict)
    detail = row["cure"] or ", ".join(f"{name} {number}" for name, number in packages.items())
    return str(row["feature"]), str(row["state"]), str(detail)


def _gpu() -> str:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return "unknown: torch is not installed"
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none that torch can use"
