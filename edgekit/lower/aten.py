"""What each operator of torch becomes in TFLite: one function each, named as torch names it.

Their arguments are those of torch's schema. A tensor that depends on the pixels comes as a Value, a weight as
a torch tensor. Sources: https://docs.pytorch.org/docs/stable/torch.compiler_ir.html,
https://ai.google.dev/edge/litert/conversion/tensorflow/build/operator_compatibility
"""

from collections.abc import Callable

from edgekit.lower import activations, arithmetic, shapes, windows
from edgekit.lower.emit import Value

Result = Value | tuple[Value, ...]
Operator = Callable[..., Result]
_IDENTITIES = ("alias", "clone", "contiguous", "detach", "lift_fresh_copy", "to", "_to_copy")
_RESHAPES = ("flatten", "reshape", "squeeze", "unflatten", "unsqueeze", "view", "_unsafe_view")
# By torch's names without overload, and without the underscore at the end that marks a change in place.
OPERATORS: dict[str, Operator] = {
    **dict.fromkeys(_IDENTITIES, shapes.identity),
    **dict.fromkeys(_RESHAPES, shapes.reshape),
    **dict.fromkeys(("cat", "concat"), shapes.cat),
    **dict.fromkeys(("constant_pad_nd", "pad"), shapes.pad),
    **dict.fromkeys(("dropout", "feature_dropout"), shapes.dropout),
    "channel_shuffle": shapes.channel_shuffle,
    "permute": shapes.permute,
    "slice": shapes.slice,
    "transpose": shapes.transpose,
    "add": arithmetic.add,
    "addmm": arithmetic.addmm,
    "batch_norm": arithmetic.batch_norm,
    "div": arithmetic.div,
    "linear": arithmetic.linear,
    "mul": arithmetic.mul,
    "reciprocal": arithmetic.reciprocal,
    "rsub": arithmetic.rsub,
    "sub": arithmetic.sub,
    **dict.fromkeys(("adaptive_avg_pool2d", "_adaptive_avg_pool2d"), windows.adaptive_avg_pool2d),
    **dict.fromkeys(("conv2d", "convolution"), windows.conv2d),
    "avg_pool2d": windows.avg_pool2d,
    "max_pool2d": windows.max_pool2d,
    "mean": windows.mean,
    **dict.fromkeys(("log_softmax", "_log_softmax"), activations.log_softmax),
    **dict.fromkeys(("softmax", "_softmax"), activations.softmax),
    "clamp": activations.clamp,
    "clamp_min": activations.clamp_min,
    "elu": activations.elu,
    "gelu": activations.gelu,
    "hardsigmoid": activations.hardsigmoid,
    "hardswish": activations.hardswish,
    "hardtanh": activations.hardtanh,
    "leaky_relu": activations.leaky_relu,
    "relu": activations.relu,
    "relu6": activations.relu6,
    "sigmoid": activations.sigmoid,
    "silu": activations.silu,
    "tanh": activations.tanh,
}
PARTS = frozenset({"chunk", "split", "split_with_sizes"})  # they give several tensors
# Their results share the memory of their input: what is changed in place in one is changed in the other.
VIEWS = frozenset({*_RESHAPES, *PARTS, "permute", "slice", "transpose"})
SAME_TENSOR = frozenset({*_IDENTITIES, "dropout", "feature_dropout"})
