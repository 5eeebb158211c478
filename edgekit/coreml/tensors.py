"""A classifier's package as plain tensors: what coremltools's app on an iPhone can take and give.

That app knows neither images nor dictionaries (``coremltools/modelrunner``: every input and output is a
multi-array). Only the ends change: pixels come as fp32, and what went into the classifier's last step goes out.
"""

from pathlib import Path
from typing import Any

from edgekit.errors import ArtifactError
from edgekit.mil.read import reading


def as_tensors(package: Path, out: Path) -> None:
    """Write the package to *out* with pixels (1, 3, H, W) in fp32 as its input, and its probabilities as an array.

    Raises ArtifactError for anything but an ML program with an RGB or BGR image.
    """
    with reading(package) as ct:
        model = ct.models.MLModel(str(package), skip_model_load=True)
        spec = model.get_spec()
        if spec.WhichOneof("Type") != "mlProgram" or len(spec.description.input) != 1:
            raise ArtifactError(f"{package} is no ML program with one input: it cannot be measured on an iPhone")
        main = spec.mlProgram.functions["main"]
        _image_to_tensor_(ct, package, spec.description.input[0], main.inputs[0])
        _classes_to_tensor_(ct, spec.description, main.block_specializations[main.opset])
        ct.models.MLModel(spec, weights_dir=model.weights_dir, skip_model_load=True).save(str(out))


def _image_to_tensor_(ct: Any, package: Path, told: Any, given: Any) -> None:
    """The program takes a tensor anyway; only its description speaks of an image."""
    if told.type.WhichOneof("Type") != "imageType":
        raise ArtifactError(f"{package} does not take an image")
    kind = told.type.imageType
    if (space := kind.ColorSpace.Name(kind.colorSpace)) != "RGB":
        raise ArtifactError(f"{package} takes {space} images; on an iPhone only RGB is measured")
    if given.type.tensorType.dataType != ct.proto.MIL_pb2.DataType.FLOAT32:
        raise ArtifactError(f"{package} takes its image in fp16; on an iPhone only fp32 is measured")
    array = told.type.multiArrayType  # to touch it takes the place of the image
    array.dataType = ct.proto.FeatureTypes_pb2.ArrayFeatureType.FLOAT32
    array.shape.extend(one.constant.size for one in given.type.tensorType.dimensions)


def _classes_to_tensor_(ct: Any, description: Any, block: Any) -> None:
    """Without the last operator of a classifier, which makes a dictionary of the probabilities."""
    place = next((place for place, one in enumerate(block.operations) if one.type == "classify"), None)
    if place is None:
        return
    name = block.operations[place].inputs["probabilities"].arguments[0].name
    del block.operations[place]
    del block.outputs[:]
    block.outputs.append(name)
    (tensor,) = [
        output.type.tensorType for one in block.operations for output in one.outputs if output.name == name
    ]
    types, arrays = ct.proto.MIL_pb2.DataType, ct.proto.FeatureTypes_pb2.ArrayFeatureType
    del description.output[:]
    description.predictedFeatureName = description.predictedProbabilitiesName = ""
    told = description.output.add(name=name)
    told.type.multiArrayType.dataType = arrays.FLOAT16 if tensor.dataType == types.FLOAT16 else arrays.FLOAT32
    told.type.multiArrayType.shape.extend(one.constant.size for one in tensor.dimensions)
