"""Reads a program of torch.export into a graph of TFLite operators.

The program is taken as `torch.export.export` leaves it, without a decomposition: so a hard swish is one operator
and not five, and exporting costs half a second. What decomposing would bring, we do here: changes in place.
"""

import operator
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from edgekit.errors import ConversionError
from edgekit.lower import blame, shapes
from edgekit.lower.aten import OPERATORS, PARTS, SAME_TENSOR, VIEWS
from edgekit.lower.emit import NHWC, Emitter, Unsupported, Value, plain
from edgekit.lower.graph import Graph

INPUT = "pixels"
_OWNERS = frozenset({"conv2d", "convolution", "linear", "addmm", "batch_norm"})  # named as their weights' module
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+), in .*\n\s*(?P<text>.*)')


class UnknownOperator(ConversionError):
    """An operator that edgekit does not write as TFLite: *operator*, the *module* it is in, and its *source*."""

    def __init__(self, operator: str, why: str, module: str, source: str) -> None:
        self.operator, self.module, self.source = operator, module, source
        super().__init__(f"edgekit does not lower {operator}{why} in module {module or 'the outermost'}{source}")


@dataclass(slots=True)
class _Cell:
    """What a torch tensor is now: changes in place replace the value. *memory*: the tensors that share theirs."""

    value: Any
    memory: list[fx.Node]


def read(program: ExportedProgram) -> Graph:
    """The program as a graph. Raises UnknownOperator."""
    reader = _Reader(program)
    for node in program.graph.nodes:
        reader.read_(node)
    return reader.graph


class _Reader:
    def __init__(self, program: ExportedProgram) -> None:
        self.graph = Graph(input=INPUT)
        self.emitter = Emitter(graph=self.graph)
        self.cells: dict[fx.Node, _Cell] = {}
        self.places = {node: place for place, node in enumerate(program.graph.nodes)}
        self.tensors: dict[str, Any] = {}  # weights by the name of their placeholder
        self.targets: dict[str, str] = {}  # and where they stand in the model
        stored = {**program.state_dict, **program.constants}
        for entry in program.graph_signature.input_specs:
            if entry.kind != InputKind.USER_INPUT and entry.target is not None:
                self.tensors[entry.arg.name], self.targets[entry.arg.name] = stored[entry.target], entry.target
        modules = {_module(node) for node in program.graph.nodes}
        self.with_weights = {target.rpartition(".")[0] for target in self.targets.values()}
        self.inner = {path.rpartition(".")[0] for path in modules | self.with_weights if path}

    @torch.no_grad()
    def read_(self, node: fx.Node) -> None:
        match node.op:
            case "placeholder":
                self.cells[node] = _Cell(self._placeholder(node), [node])
            case "call_function":
                self._call_(node)
            case "output":
                [result] = [self.cells[found].value for found in node.all_input_nodes]
                self.graph.output = self.emitter.stored_as(result, plain(len(result.shape))).name
            case _:
                raise _unknown(node, f"node of kind {node.op}", "")

    def _placeholder(self, node: fx.Node) -> Any:
        if node.name in self.tensors:
            return self.tensors[node.name]
        shape = tuple(node.meta["val"].shape)
        pixels = Value(name=INPUT, shape=shape, order=NHWC if len(shape) == 4 else plain(len(shape)))
        self.graph.shapes[INPUT] = pixels.stored
        return pixels

    def _call_(self, node: fx.Node) -> None:
        if node.target is operator.getitem:
            source, index = self.cells[node.all_input_nodes[0]], node.args[1]
            assert isinstance(index, int)
            source.memory.append(node)
            self.cells[node] = _Cell(source.value[index], source.memory)
            return
        if not isinstance(node.target, torch._ops.OpOverload):
            raise _unknown(node, str(node.target), "")
        kind = node.target.overloadpacket.__name__
        if kind.startswith("_assert"):
            return
        in_place, kind = kind.endswith("_"), kind.removesuffix("_")
        arguments = _bound(node.target, *self._values(node))
        try:
            value = self._result(node, kind, arguments)
        except Unsupported as reason:
            raise _unknown(node, _shown(node.target), f": {reason};") from None
        self._keep_(node, kind, value, in_place)

    def _values(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with tensors in the place of nodes."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda found: self.cells[found].value)
        return tuple(args), dict(kwargs)

    def _result(self, node: fx.Node, kind: str, arguments: dict[str, Any]) -> Any:
        assert isinstance(node.target, torch._ops.OpOverload)
        leaves = pytree.tree_leaves(arguments)
        if not any(isinstance(leaf, Value) for leaf in leaves):
            return self._computed(node.target, arguments)
        if kind not in OPERATORS and kind not in PARTS:
            raise _unknown(node, _shown(node.target), "")
        results = node.meta["val"]
        for result in pytree.tree_leaves(results):
            if isinstance(result, Tensor) and result.dtype != torch.float32:
                raise Unsupported(f"its result is {result.dtype} and not float32")
        self.emitter.name = self._name(node, kind)
        if kind in PARTS:
            return self._parts(arguments["self"], arguments["dim"], results)
        self.emitter.shape = tuple(pytree.tree_leaves(results)[0].shape)
        (_, first), *others = arguments.items()  # the first by place: in place, torch gives it another name
        return OPERATORS[kind](self.emitter, first, **dict(others))

    def _computed(self, target: Any, arguments: dict[str, Any]) -> Any:
        """What does not depend on the pixels is computed here and now."""
        if torch.Tag.nondeterministic_seeded in target.tags:
            raise Unsupported("it draws random numbers")
        if target._schema.is_mutable:
            raise Unsupported("it changes a weight in place")
        given = {entry.name: entry for entry in target._schema.arguments}
        return target(
            *(value for name, value in arguments.items() if not given[name].kwarg_only),
            **{name: value for name, value in arguments.items() if given[name].kwarg_only},
        )

    def _parts(self, value: Value, dim: int, results: Any) -> tuple[Value, ...]:
        parts, start = [], 0
        for result in results:
            self.emitter.shape = tuple(result.shape)
            parts.append(shapes.slice(self.emitter, value, dim, start, start + result.shape[dim], 1))
            start += result.shape[dim]
        return tuple(parts)

    def _name(self, node: fx.Node, kind: str) -> str:
        """Where the operator stands in the model: `model.features.3.0`, or with its kind `model.features.3.add`.

        The module's path alone where the module is made for this operator: its weights are there, or nothing is.
        """
        if kind in _OWNERS:
            weights = [self.targets[n.name] for n in node.all_input_nodes if n.name in self.targets]
            if weights:
                return weights[0].rpartition(".")[0] or kind
        path = _module(node)
        lonely = path and path not in self.inner and path not in self.with_weights
        return path if lonely and path not in self.graph.shapes else f"{path}.{kind}".lstrip(".")

    def _keep_(self, node: fx.Node, kind: str, value: Any, in_place: bool) -> None:
        source = self.cells[node.all_input_nodes[0]] if node.all_input_nodes else None
        if source is not None and (in_place or kind in SAME_TENSOR):
            if in_place and kind not in SAME_TENSOR:
                self._check_views(node, source)
                source.value = value
            self.cells[node] = source
        else:
            memory = source.memory if source is not None and kind in VIEWS else []
            self.cells[node] = _Cell(value, memory)
        self.cells[node].memory.append(node)

    def _check_views(self, node: fx.Node, changed: _Cell) -> None:
        """Refuse a change in place that another view of the same memory would show later on."""
        here = self.places[node]
        for other in changed.memory:
            if self.cells[other] is not changed and any(self.places[user] > here for user in other.users):
                raise _unknown(node, _shown(node.target), ": it changes in place what is read through a view;")


def _bound(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by their names in the operator's schema, with its defaults."""
    found = {}
    for place, entry in enumerate(target._schema.arguments):
        if place < len(args):
            found[entry.name] = args[place]
        elif entry.name in kwargs:
            found[entry.name] = kwargs[entry.name]
        else:
            found[entry.name] = entry.default_value
    return found


def _shown(target: Any) -> str:
    return str(target).removesuffix(".default")


def _module(node: fx.Node) -> str:
    """The path of the innermost module that the node is in."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((str(path) for path, kind in reversed(stack.values())), "")


def _kind(node: fx.Node) -> str:
    """The class of the innermost module that the node is in."""
    stack = node.meta.get("nn_module_stack") or {}
    found = next((kind for _, kind in reversed(stack.values())), "")
    return found if isinstance(found, str) else f"{found.__module__}.{found.__qualname__}"


def _unknown(node: fx.Node, name: str, why: str) -> UnknownOperator:
    """The error, with the line of the model's code: the last one outside torch, or the module's class."""
    frames = [
        found for found in _FRAME.finditer(node.meta.get("stack_trace") or "") if blame.is_users(found["file"])
    ]
    if frames:
        return UnknownOperator(
            name, why, _module(node), " ({file}, line {line}: {text})".format(**frames[-1].groupdict())
        )
    kind = _kind(node)
    return UnknownOperator(name, why, _module(node), f" ({kind})" if kind else "")
