"""The float program of a model: exported once, converted once, and edited into each precision."""

import json
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.coreml.systems import TARGETS
from edgekit.requires import require
from edgekit.schema import encode

if TYPE_CHECKING:
    import torch

    from edgekit.export import Source

FEATURE = "Converting to coreml"
LINEAR = ("conv", "linear")  # the operators that hold nearly all weights
_PARAMETERS = re.compile(r"(.*)\.(weight|bias)$")


def floats(source: "Source", precision: str) -> Any:
    """coremltools's model (an ``MLModel``) in ``fp32`` or ``fp16``, for iOS15. Made once per source."""
    exported, names = source.once("coreml program", lambda: _export(source))
    base = source.once("coreml fp32 as converted", lambda: _convert(source, exported))

    def finished(program: Any, function: Any) -> None:
        fold_normalization_(function, precision)
        if precision == "fp16":
            _halve_(program)
        name_layers_(function, names)

    return source.once(f"coreml {precision}", lambda: edit(base, finished, "iOS15"))


def _export(source: "Source") -> tuple["torch.export.ExportedProgram", tuple[str, ...]]:
    """The classifier with softmax, decomposed, and the module paths of its linear layers in order."""
    import torch

    model = torch.nn.Sequential(source.torch_model("coreml"), torch.nn.Softmax(dim=1)).eval()
    program = torch.export.export(model, (torch.zeros(1, 3, *source.shape_NHWC[1:3]),))
    parameters = program.graph_signature.inputs_to_parameters
    linear = {"aten.conv1d", "aten.conv2d", "aten.convolution", "aten.linear", "aten.addmm"}
    names = []
    for node in program.graph.nodes:
        if node.op == "call_function" and str(node.target).rpartition(".")[0] in linear:
            held = [parameters[one.name] for one in node.all_input_nodes if one.name in parameters]
            found = next((match[1] for match in map(_PARAMETERS.match, held) if match), "")
            names.append(found.removeprefix("0.model.") or node.name)
    return program.run_decompositions({}), tuple(names)


def _convert(source: "Source", exported: Any) -> Any:
    ct = require("coremltools", feature=FEATURE, extra="coreml")
    shape = (1, 3, source.preprocess.height, source.preprocess.width)
    return ct.convert(
        exported,
        convert_to="mlprogram",
        inputs=[ct.ImageType(name="image", shape=shape, color_layout=ct.colorlayout.RGB)],
        classifier_config=ct.ClassifierConfig(list(source.labels)),
        compute_precision=ct.precision.FLOAT32,
        minimum_deployment_target=ct.target.iOS15,
        skip_model_load=True,
    )


def edit(model: Any, change: Callable[[Any, Any], None], target: str) -> Any:
    """The model with its program changed in place by *change* (program, main function), for *target* or later."""
    from coremltools.converters.mil.converter import mil_convert

    spec = model.get_spec()
    return mil_convert(
        _changed(model, change, target),
        convert_to="mlprogram",
        convert_from="milinternal",
        specification_version=_version(spec, target),
        compute_units=model.compute_unit,
        model_description=spec.description,
        skip_model_load=True,
    )


def changed(model: Any, change: Callable[[Any, Any], None], target: str) -> Any:
    """The main function of such a program, to be run by edgekit's reference: no package is made of it."""
    return _changed(model, change, target).functions["main"]


def _changed(model: Any, change: Callable[[Any, Any], None], target: str) -> Any:
    from coremltools.converters.mil.frontend.milproto.load import load

    spec = model.get_spec()
    program = load(spec, _version(spec, target), model.weights_dir)
    with program.functions["main"] as function:
        change(program, function)
    return program


def _version(spec: Any, target: str) -> int:
    return max(int(spec.specificationVersion), TARGETS[target])


def describe_(model: Any, source: "Source", author: str, licence: str) -> None:
    """Put what a user of the package wants to know into it."""
    model.short_description = f"Image classifier of {len(source.labels)} classes, made by edgekit"
    model.author, model.license = author, licence
    model.user_defined_metadata["preprocess"] = json.dumps(encode(source.preprocess))
    model.user_defined_metadata["labels"] = json.dumps(source.labels, ensure_ascii=False)


def linear_layers(function: Any) -> Iterator[Any]:
    """The operators with constant weights, in order."""
    for operation in function.operations:
        if operation.op_type in LINEAR and operation.inputs["weight"].op is not None:
            yield operation


def name_layers_(function: Any, names: tuple[str, ...]) -> None:
    """Name linear layers by module paths, where the program has as many as the model; dots become underscores."""
    layers = list(linear_layers(function))
    if len(layers) != len(names):
        return
    taken = {variable.name for operation in function.operations for variable in operation.outputs}
    for operation, path in zip(layers, names, strict=True):
        name = re.sub(r"\W", "_", path)
        name = name if re.match("[A-Za-z_]", name) else f"_{name}"
        while name in taken:  # a layer that is used twice
            name += "_"
        taken.add(name)
        operation.name = operation.outputs[0].name = name


def fold_normalization_(function: Any, precision: str) -> None:
    """conv((image - mean) * c): c into the weights, exactly; what fp16 rounds off the mean into the bias.

    Only without what else reads the normalized image. The rest of the mean is exact but for taps that lie in the
    padding, and below a sixteenth of a grey level there.
    """
    from coremltools.converters.mil import Builder as mb

    for conv in list(linear_layers(function)):
        product = conv.inputs["x"].op
        if conv.op_type != "conv" or product is None or product.op_type not in ("mul", "real_div"):
            continue
        difference = product.inputs["x"].op
        if difference is None or difference.op_type != "sub" or len(product.outputs[0].child_ops) != 1:
            continue
        factor, mean, weight = product.inputs["y"].val, difference.inputs["y"].val, conv.inputs["weight"].val
        channels = difference.outputs[0].shape[1]
        if any(one is None or one.size != channels for one in (factor, mean)) or weight.shape[1] != channels:
            continue
        scale = 1 / factor if product.op_type == "real_div" else factor
        scaled = weight * scale.reshape(1, -1, 1, 1)
        rest = mean.astype(np.float16 if precision == "fp16" else np.float32).astype(np.float32) - mean
        bias = conv.inputs["bias"].val if "bias" in conv.inputs else np.zeros(len(weight), np.float32)
        shifted = bias + (scaled * rest.reshape(1, -1, 1, 1)).sum((1, 2, 3))
        given = {name: variable for name, variable in conv.inputs.items() if variable is not None}
        given |= {"x": difference.outputs[0], "name": conv.name, "before_op": conv}
        given |= {"weight": scaled.astype(np.float32), "bias": shifted.astype(np.float32)}
        folded = mb.conv(**given)
        function.replace_uses_of_var_after_op(anchor_op=conv, old_var=conv.outputs[0], new_var=folded)
        function.remove_ops([conv, product])


def _halve_(program: Any) -> None:
    """Compute in fp16, but for the image that comes and the probabilities that go."""
    from coremltools.converters.mil.mil.passes.defs.quantization import FP16ComputePrecision

    # The class names of `classify` are a list, for which the pass asks a type.
    FP16ComputePrecision(op_selector=lambda operation: operation.op_type != "classify").apply(program)
