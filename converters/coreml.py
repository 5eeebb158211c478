"""Core ML through coremltools: an RGB image in, class label and probabilities out, normalisation inside.

``predict`` runs the saved package with edgekit's own reference (`edgekit.mil`), since Core ML needs a Mac.
"""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import files
from edgekit.artifact import Artifact, TensorSpec
from edgekit.convert import Conversion, Inspection, Precision, converting, labels_in
from edgekit.errors import ArtifactError
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.recipe import Variant
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    import torch

    from edgekit.export import Logits, Source

target = "coreml"
suffix = ".mlpackage"
precisions = {
    "fp32": Precision(
        does="32-bit floating point; runs on CPU and GPU, not on the Neural Engine", size="1", lacks="nothing"
    ),
    "fp16": Precision(
        does="16-bit floating point, weights and activations: the default of Core ML", size="0.50", lacks="nothing"
    ),
}
extra = "coreml"


def check() -> None:
    with quiet():
        for module in ("torch", "coremltools"):
            require(module, feature="Converting to coreml", extra=extra)


def convert(source: "Source", variant: Variant, out: Path) -> Conversion:
    with quiet(), converting("coremltools"):
        ct = require("coremltools", feature="Converting to coreml", extra=extra)
        program = source.once("coreml program", lambda: _export(source))
        precision = ct.precision.FLOAT16 if variant.precision == "fp16" else ct.precision.FLOAT32
        shape = (1, 3, source.preprocess.height, source.preprocess.width)
        model = ct.convert(
            program,
            convert_to="mlprogram",
            inputs=[ct.ImageType(name="image", shape=shape, color_layout=ct.colorlayout.RGB)],
            classifier_config=ct.ClassifierConfig(list(source.labels)),
            compute_precision=precision,
            minimum_deployment_target=ct.target.iOS15,
            skip_model_load=True,
        )
        model.short_description = f"Image classifier of {len(source.labels)} classes, made by edgekit"
        model.user_defined_metadata["preprocess"] = json.dumps(encode(source.preprocess))
        model.user_defined_metadata["labels"] = json.dumps(source.labels, ensure_ascii=False)
        model.save(str(out))
        # For debugging coremltools itself: no part of the package, but a tenth of its size.
        files.remove(out / "executorch_debug_handle_mapping.json")
    return Conversion(
        input=TensorSpec(name="image", shape=shape, dtype="image"),
        output=TensorSpec(name="classLabel_probs", shape=(1, len(source.labels)), dtype="dictionary"),
        tools={name: version(name) for name in ("torch", "coremltools")},
        notes=("parity by edgekit's reference execution, not by Core ML",),
    )


def _export(source: "Source") -> "torch.export.ExportedProgram":
    import torch

    model = torch.nn.Sequential(source.torch_model(target), torch.nn.Softmax(dim=1)).eval()
    program = torch.export.export(model, (torch.zeros(1, 3, *source.shape_NHWC[1:3]),))
    decomposed: torch.export.ExportedProgram = program.run_decompositions({})
    return decomposed


def predict(artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
    import torch

    from edgekit import mil

    function = mil.load(artifact.path)
    images = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        return torch.cat([mil.logits(function, images[i : i + 1]) for i in range(len(images))]).numpy()


def inspect(path: Path) -> Inspection:
    from edgekit import mil

    description, function = mil.describe(path), mil.load(path)
    if not description.input or description.input[0].type.WhichOneof("Type") != "imageType":
        raise ArtifactError(f"{path} does not take an image; edgekit reads image classifiers")
    image, metadata = description.input[0], dict(description.metadata.userDefined)
    labels = mil.labels(function) or labels_in(metadata)
    weights: Counter[str] = Counter()
    for operation in function.operations:
        if operation.op_type == "const" and isinstance(value := operation.outputs[0].val, np.ndarray | np.generic):
            weights[str(value.dtype)] += value.nbytes
    return Inspection(
        input=TensorSpec(
            name=image.name, shape=(1, 3, image.type.imageType.height, image.type.imageType.width), dtype="image"
        ),
        output=TensorSpec(name=description.output[-1].name, shape=(1, len(labels)), dtype="dictionary"),
        operators=tuple(Counter(mil.operators(function)).most_common()),
        weights=tuple(weights.most_common()),
        labels=labels,
        metadata=metadata,
    )
