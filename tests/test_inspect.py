"""What `edgekit inspect` tells of a TFLite file's operators: types, products, bytes, and who runs them."""

import json
from pathlib import Path

import pytest
from torch import Tensor, nn

from edgekit import convert, flatbuffer, xnnpack
from edgekit.cli import main
from edgekit.errors import ArtifactError
from edgekit.export import PixelClassifier
from edgekit.flatbuffer import Operator
from edgekit.lower import lower
from edgekit.lower.graph import Graph, Node
from edgekit.lower.write import to_bytes
from edgekit.preprocess import preset
from tests import tiny_models

VALUES = tiny_models.SIDE * tiny_models.SIDE * 3


def chain(*kinds: str) -> bytes:
    """A file of operators of one input each, in a row."""
    shape = (1, 8, 8, 3)
    graph = Graph(input="x", output="x", shapes={"x": shape})
    for kind in kinds:
        node = Node(kind=kind, inputs=(graph.output,), output=graph.unique(kind))
        graph.output = graph.add_node_(node, shape)
    return to_bytes(graph)


def unloadable(path: Path) -> None:
    """A sound flatbuffer with a version of an operator that no runtime has."""
    tiny_models.tflite(path)
    model = flatbuffer.unpack(path.read_bytes())
    model.operatorCodes[0].version = 99
    path.write_bytes(flatbuffer.pack(model))


def test_details_of_each_operator(tmp_path: Path) -> None:
    path = tiny_models.tflite(tmp_path / "dense.tflite").path
    assert convert.for_file(path).inspect(path).details == (
        Operator(kind="CAST", name="floats", dtype="float32"),
        Operator(kind="RESHAPE", name="row", dtype="float32", weights="int32", size_bytes=8),
        Operator(
            kind="FULLY_CONNECTED",
            name="logits",
            dtype="float32",
            weights="float32",
            macs=VALUES * 4,
            size_bytes=VALUES * 16,
        ),
    )


def test_xnnpack_leaves_what_it_does_not_know(tmp_path: Path) -> None:
    path = tmp_path / "chain.tflite"
    path.write_bytes(chain("RELU", "LOGISTIC", "FLOOR", "LOG_SOFTMAX", "RELU6"))
    assert xnnpack.taken(path) == (True, True, True, False, True)


def test_two_parts_and_an_operator_between() -> None:
    def listed(name: str, inputs: list[int], outputs: list[int]) -> dict[str, object]:
        return {"op_name": name, "inputs": inputs, "outputs": outputs}

    operators = [listed("A", [0], [1]), listed("B", [1], [2]), listed("C", [2], [3]), listed("D", [3, 1], [4])]
    assert xnnpack.inside(operators) == [False] * 4
    first, second = listed("DELEGATE", [0], [2, 1]), listed("DELEGATE", [3, 1], [4])
    assert xnnpack.inside([*operators, first, second]) == [True, True, False, True]


def test_a_file_that_the_runtime_refuses(tmp_path: Path) -> None:
    unloadable(tmp_path / "new.tflite")
    with pytest.raises(ArtifactError, match=r"the runtime cannot load .*new\.tflite: .*version '?99'?"):
        xnnpack.taken(tmp_path / "new.tflite")


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_models.tflite(tmp_path / "dense.tflite").path
    assert main(["inspect", str(path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["operator", "count", "gives", "weights", "MACs", "stored", "taken", "by", "XNNPACK"] in lines
    assert ["FULLY_CONNECTED", "1", "float32", "float32", "0.0", "M", "3.07", "kB", "all"] in lines
    assert ["CAST", "1", "float32", "none"] in lines


def test_layers_by_name_in_their_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_models.tflite(tmp_path / "dense.tflite").path
    names = [one.name for one in convert.for_file(path).inspect(path).details]
    assert main(["inspect", str(path), "--layers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    start = lines.index(["layer", "operator", "gives", "weights", "MACs", "stored", "taken", "by", "XNNPACK"]) + 1
    assert [line[0] for line in lines[start : start + 3]] == names
    last = [names[2], "FULLY_CONNECTED", "float32", "float32", "768", "3.07", "kB", "yes"]
    assert (lines[start][1:], lines[start + 2]) == (["CAST", "float32", "no"], last)


def test_layers_of_a_file_that_tells_its_weights_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_models.onnx(tmp_path / "dense.onnx").path
    [held] = {one.layer for one in convert.for_file(path).inspect(path).parts}
    assert main(["inspect", str(path), "--layers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[lines.index(["layer", "operator", "weights", "stored"]) + 1][:1] == [held]


def test_the_table_without_a_runtime_that_loads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unloadable(tmp_path / "new.tflite")
    assert main(["inspect", str(tmp_path / "new.tflite")]) == 0
    out = capsys.readouterr().out
    assert "the runtime cannot load" in out
    assert ["CAST", "1", "float32", "?"] in [line.split() for line in out.splitlines()]


def test_json_holds_each_operator(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tiny_models.tflite(tmp_path / "dense.tflite").path
    assert main(["inspect", str(path), "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["kind"] for one in found["details"]] == ["CAST", "RESHAPE", "FULLY_CONNECTED"]
    assert found["xnnpack"] == [False, True, True]


def test_the_stem_ends_with_the_first_convolution(tmp_path: Path) -> None:
    assert flatbuffer.stem(flatbuffer.unpack(chain("RELU"))) == ()
    assert flatbuffer.stem(flatbuffer.unpack(tiny_models.tflite(tmp_path / "x.tflite").path.read_bytes())) == ()


SWISH = ["activation", "second"]


class Stem(nn.Module):
    """A first convolution, an activation, a second convolution; *joined*: a sum reads the activation, too."""

    def __init__(self, activation: nn.Module, second: nn.Conv2d, joined: bool) -> None:
        super().__init__()
        self.first, self.activation, self.second = nn.Conv2d(3, 8, 3, padding=1), activation, second
        self.dense, self.joined = nn.Linear(8, 2), joined

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        y = self.second(x)
        logits: Tensor = self.dense((x + y if self.joined else y).mean((2, 3)))
        return logits


@pytest.mark.parametrize(
    ("activation", "second", "joined", "more"),
    [
        (nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1, groups=8), False, SWISH),
        (nn.Hardswish(), nn.Conv2d(8, 8, 3, padding=1, groups=8), True, SWISH),
        (nn.Hardswish(), nn.Conv2d(8, 8, 3, 2, 1, groups=8), False, ["activation", "second.pad", "second"]),
        (
            nn.SiLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            False,
            ["activation.sigmoid", "activation", "second"],
        ),
        (nn.Hardswish(), nn.Conv2d(8, 8, 1), False, []),
        (nn.Hardswish(), nn.Conv2d(8, 8, 3, 2, 1), False, []),
        (nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), False, []),
        (nn.Sigmoid(), nn.Conv2d(8, 8, 3, padding=1, groups=8), False, []),
    ],
)
def test_a_soft_activation_takes_the_first_depthwise_layer_into_the_stem(
    activation: nn.Module, second: nn.Conv2d, joined: bool, more: list[str]
) -> None:
    net = PixelClassifier(Stem(activation, second, joined), preset("imagenet", 8, 8)).eval()
    found = flatbuffer.stem(flatbuffer.unpack(lower(net, (1, 8, 8, 3))))
    first = list(found).index("model.first")
    assert found[first + 1 :] == tuple(f"model.{name}" for name in more)


class Forked(nn.Module):
    """Two depthwise layers that read one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.activation, self.dense = nn.Conv2d(3, 8, 1), nn.SiLU(), nn.Linear(8, 2)
        self.near, self.far = nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.Conv2d(8, 8, 2, 2, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.first(x))
        logits: Tensor = self.dense((self.near(x) + self.far(x)).mean((2, 3)))
        return logits


def test_all_depthwise_layers_that_read_it_are_of_the_stem() -> None:
    net = PixelClassifier(Forked(), preset("imagenet", 8, 8)).eval()
    found = flatbuffer.stem(flatbuffer.unpack(lower(net, (1, 8, 8, 3))))
    assert set(found) >= {f"model.{name}" for name in ("activation", "near.pad", "near", "far")}
