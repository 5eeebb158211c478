"""Core ML through coremltools: an RGB image in, class label and probabilities out, normalisation inside.

``predict`` runs the saved package with edgekit's own reference (`edgekit.mil`), since Core ML needs a Mac.
"""

import json
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from edgekit import mil
from edgekit.artifact import Artifact, TensorSpec
from edgekit.convert import Conversion, Inspection
from edgekit.errors import ArtifactError, ConversionError
from edgekit.preprocess import Pixels
from edgekit.quiet import quiet
from edgekit.recipe import Variant
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    from edgekit.export import ExportSource, Logits

target = "coreml"
suffix = ".mlpackage"
precisions = {
    "fp32": "32-bit floating point; runs on CPU and GPU, not on the Neural Engine",
    "fp16": "16-bit floating point, weights and activations: the default of Core ML",
}
extra = "coreml"


def check() -> None:
    with quiet():
        for module in ("torch", "coremltools"):
            require(module, feature="Converting to coreml", extra=extra)


def convert(source: "ExportSource", variant: Variant, out: Path) -> Conversion:
    with quiet():
        ct = require("coremltools", feature="Converting to coreml", extra=extra)
        program = source.once("coreml program", lambda: _export(source))
        precision = ct.precision.FLOAT16 if variant.precision == "fp16" else ct.precision.FLOAT32
        shape = (1, 3, source.preprocess.height, source.preprocess.width)
        try:
            model = ct.convert(
                program,
                convert_to="mlprogram",
                inputs=[ct.ImageType(name="image", shape=shape, color_layout=ct.colorlayout.RGB)],
                classifier_config=ct.ClassifierConfig(list(source.labels)),
                compute_precision=precision,
                minimum_deployment_target=ct.target.iOS15,
                skip_model_load=True,
            )
        except (NotImplementedError, ValueError, RuntimeError) as error:
            raise ConversionError(f"coremltools cannot convert this model: {error}") from error
        model.short_description = f"Image classifier of {len(source.labels)} classes, made by edgekit"
        model.user_defined_metadata["preprocess"] = json.dumps(encode(source.preprocess))
        model.user_defined_metadata["labels"] = json.dumps(source.labels, ensure_ascii=False)
        model.save(str(out))
    return Conversion(
        input=TensorSpec(name="image", shape=shape, dtype="image"),
        output=TensorSpec(name="classLabel_probs", shape=(1, len(source.labels)), dtype="dictionary"),
        tools={name: version(name) for name in ("torch", "coremltools")},
        notes=("parity by edgekit's reference execution, not by Core ML",),
    )


class _Probabilities(torch.nn.Module):
    def __init__(self, classifier: torch.nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.classifier(image), dim=1)


def _export(source: "ExportSource") -> torch.export.ExportedProgram:
    model = _Probabilities(source.model).eval()
    program = torch.export.export(model, (source.example_NCHW(),))
    decomposed: torch.export.ExportedProgram = program.run_decompositions({})
    return decomposed


@torch.no_grad()
def predict(artifact: Artifact, pixels_NHWC: Pixels) -> "Logits":
    function = mil.load(artifact.path)
    images = torch.from_numpy(np.array(pixels_NHWC)).permute(0, 3, 1, 2).float()
    return torch.cat([mil.logits(function, images[i : i + 1]) for i in range(len(images))]).numpy()


def inspect(path: Path) -> Inspection:
    function = mil.load(path)
    ct = require("coremltools", feature="Reading coreml files", extra=extra)
    with quiet():
        description = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    if not description.input or description.input[0].type.WhichOneof("Type") != "imageType":
        raise ArtifactError(f"{path} does not take an image; edgekit reads image classifiers")
    image, metadata = description.input[0], dict(description.metadata.userDefined)
    labels = tuple(json.loads(metadata.get("labels", "[]")))
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
