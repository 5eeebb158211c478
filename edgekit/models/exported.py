"""A ``.pt2`` file of torch.export as a classifier, read without running anything that it holds.

What torch 2.14's `torch.export.load` would do with a hostile file: unpickle tensors of unusual classes and
custom objects (``use_pickle``, ``custom_obj_``, ``opaque_obj_``) without limits; unpickle the sample inputs
likewise when reading them safely fails; unpickle the parts of the format of 2.7 and older likewise; load
compiled libraries (``data/aotinductor``); call whatever function below ``torch``, ``math`` or ``operator`` a
node names; hand the text of symbolic sizes to SymPy, which evaluates it; import a module that a tree of
inputs names. A file that has any of these is refused before it is loaded. What is left is a graph of ATen
operators, tensors as plain bytes, and sample inputs that `torch.load` reads with ``weights_only=True``.
"""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UsageError

_MEMBERS = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/\w+|version|extra/[^/]*|models/model\.json|"
    r"data/weights/(weight_\d+|model_weights_config\.json)|"
    r"data/constants/(tensor_\d+|model_constants_config\.json)|data/sample_inputs/model\.pt)"
)
_TARGETS = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.(getitem|add|sub|mul|floordiv|mod|eq|ge|le|gt|lt)")
_SIZES = re.compile(
    r"-?\d+|[a-z]+\d+|Symbol\('[a-z]+\d+'(, \w+=True)*\)"
)  # a number or one symbol: of a dynamic batch
_TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict")


class Exported(nn.Module):
    """The program of a file: images (N, 3, H, W) to logits (N, classes). It cannot be trained.

    A program is mostly exported for one image: more are passed one by one.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        program = _load(path)
        self.path = path
        self.shape = _image_shape(program, path)
        self.program = program.module()

    def forward(self, images: Tensor) -> Tensor:
        if len(images) == 1:
            return self._one(images)
        return torch.cat([self._one(images[i : i + 1]) for i in range(len(images))])

    def _one(self, image: Tensor) -> Tensor:
        found = self.program(image)
        if not isinstance(found, Tensor) or found.dim() != 2:
            raise UsageError(f"{self.path} gives {_shown(found)}; a classifier gives scores of shape (1, classes)")
        return found

    def train(self, mode: bool = True) -> "Exported":
        """Evaluation is what it was exported for. Raises UsageError for training."""
        if mode:
            raise UsageError(f"{self.path} is an exported program: it can be converted, but not trained")
        self.training = False  # torch's own refuses both modes
        return self


def _load(path: Path) -> torch.export.ExportedProgram:
    if reason := _suspicious(path):
        raise UsageError(f"{path} is not loaded: {reason}")
    try:
        return torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, AssertionError) as error:
        raise UsageError(f"{path} cannot be loaded by torch {torch.__version__}: {error}") from error


def _suspicious(path: Path) -> str:
    """Why the file is not loaded, or nothing. It is read by the reader that loads it: both see the same bytes."""
    again = "save it again: torch.export.save(torch.export.export(model.eval(), (images,)), FILE)"
    try:
        reader = torch._C.PyTorchFileReader(str(path))
        members = reader.get_all_records()
    except RuntimeError:
        return "it is no archive of torch.export; " + again
    if "archive_format" not in members or reader.get_record("archive_format") != b"pt2":
        return "it is no archive of torch.export, or one of torch 2.7 or older; " + again
    if strange := [name for name in members if not _MEMBERS.fullmatch(name)]:
        return f"it holds {strange[0]}, and edgekit reads graphs and plain tensors only; {again}"
    try:
        graph = json.loads(reader.get_record("models/model.json"))
        for kind, prefix in (("weights", "weight_"), ("constants", "tensor_")):
            config = json.loads(reader.get_record(f"data/{kind}/model_{kind}_config.json"))["config"]
            for name, entry in config.items():
                if entry["use_pickle"] is not False or not entry["path_name"].startswith(prefix):
                    return f"its {kind} hold {name!r} as a pickle, which could run code"
        torch.load(io.BytesIO(reader.get_record("data/sample_inputs/model.pt")), weights_only=True)
    except UnpicklingError:
        return "its sample inputs are a pickle that could run code"
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        return f"it is damaged: {type(error).__name__}: {error}; {again}"
    return _suspicious_graph(graph)


def _suspicious_graph(graph: Any) -> str:
    for key, value in _entries(graph):
        if key == "target" and isinstance(value, str) and not _TARGETS.fullmatch(value):
            return f"its graph calls {value}, and edgekit runs ATen operators only"
        if key == "expr_str" and not (isinstance(value, str) and _SIZES.fullmatch(value)):
            return f"a size of its graph is computed: {value}; export it for images of one size"
        if key in ("in_spec", "out_spec"):
            for part, kind in _entries(json.loads(value)) if isinstance(value, str) and value else ():
                if part == "type" and kind not in _TREES:
                    return f"its inputs or outputs hold a {kind}"
    return ""


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)
    elif isinstance(value, list):
        for item in value:
            yield from _entries(item)


def _image_shape(program: torch.export.ExportedProgram, path: Path) -> tuple[int, int]:
    """Height and width that the program takes. Raises UsageError for what is not an image of three channels."""
    inputs = [
        node.meta["val"]
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs
    ]
    if len(inputs) != 1:
        raise UsageError(
            f"{path} takes {len(inputs)} inputs; an image classifier takes one, of shape (1, 3, H, W)"
        )
    [image] = inputs
    sizes = tuple(image.shape) if isinstance(image, Tensor) else ()
    if len(sizes) != 4 or sizes[1] != 3 or not all(isinstance(size, int) for size in sizes[2:]):
        raise UsageError(f"{path} takes {_shown(image)}; an image classifier takes (1, 3, H, W) of one size")
    if isinstance(sizes[0], int) and sizes[0] != 1:
        raise UsageError(f"{path} takes {sizes[0]} images at once: export it for one, or with a dynamic batch")
    if image.dtype != torch.float32:
        raise UsageError(f"{path} takes {image.dtype}; edgekit gives it normalised float32 images")
    return int(sizes[2]), int(sizes[3])


def _shown(value: Any) -> str:
    return f"({', '.join(map(str, value.shape))})" if isinstance(value, Tensor) else type(value).__name__
