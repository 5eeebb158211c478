"""A recipe: what is trained on what, into which files, measured how. Decoded strictly from TOML."""

import tomllib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from edgekit import plugins, toml
from edgekit.errors import RecipeError, UsageError, nearest
from edgekit.preprocess import Preprocess
from edgekit.prunespec import PruneSpec
from edgekit.schema import Between, SchemaError, decode, encode
from edgekit.trainspec import IMAGENET, Count, NotNegative, QatSpec, TrainSpec

Activation = Literal["relu", "relu6", "hswish", "silu"]
Padding = Literal["symmetric", "same"]
REPAIRED = ("int8", "int8-mixed")  # the precisions that a max_drop chooses between
QAT = "int8-qat"  # the precision that trains
BY_NAME = (QAT, "sparse")  # precisions that are no part of all
DEFAULT_MAX_DROP = 0.5  # percentage points, of int8-mixed
# Of the float weights before they become int8, the cheapest first; with a name for people.
REPAIRS = {
    "equalize": "equalized channels",
    "correct_biases": "corrected biases",
    "adaround": "learned rounding",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """``stem_stride = 1``, and ``stage_stride = 1`` of the first stage that halves the image after the stem, suit
    images of 32 to 64 pixels. What is None is as the architecture has it.

    ``padding = "same"`` is TensorFlow's rule; ``drop_path`` the share of residual branches dropped at the end.
    ``channels``: of a pruned model, the channels that a layer takes and gives, by its name, where they are fewer
    than the architecture's.
    """

    name: str
    width: Annotated[float, Between(0.05, 4.0)] = 1.0
    stem_stride: Literal[1, 2] = 2
    stage_stride: Literal[1, 2] = 2
    dropout: Annotated[float, Between(0.0, 0.9)] | None = None
    drop_path: Annotated[float, Between(0.0, 0.9)] | None = None
    activation: Activation | None = None
    squeeze_excite: bool | None = None
    padding: Padding | None = None
    channels: dict[str, tuple[Count, Count]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSpec:
    """``source``: ``digits``, ``cifar10`` or a folder of class folders."""

    source: str
    val_fraction: Annotated[float, Between(0.01, 0.9)] = 0.2
    split_seed: int = 0
    preprocess: Preprocess


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibrationSpec:
    """Which training images set the ranges of static int8, and how.

    ``min-max`` covers all that was seen, ``moving-average`` an average of each image's ends, ``percentile`` all
    but the outermost 0.01 %, ``mse`` what leaves the least squared error. ``auto`` tries them and keeps the best.
    ``equalize`` makes the channels of a tensor equally large first, ``correct_biases`` takes mean errors out of
    the biases afterwards (https://arxiv.org/abs/1906.04721, sections 4.1 and 4.2); ``adaround`` learns which
    weights to round up or down (https://arxiv.org/abs/2004.10568). A search by ``max_drop`` tries them, too.
    """

    images: Annotated[int, Between(1, 100_000)] = 256
    seed: int = 0
    method: Literal["auto", "min-max", "moving-average", "percentile", "mse"] = "auto"
    equalize: bool = False
    correct_biases: bool = False
    adaround: bool = False

    @property
    def repairs(self) -> tuple[str, ...]:
        """What is done to the float weights."""
        return tuple(name for name in REPAIRS if getattr(self, name))

    def repaired(self, names: Collection[str]) -> "CalibrationSpec":
        """With these repairs and no others."""
        return replace(
            self,
            equalize="equalize" in names,
            correct_biases="correct_biases" in names,
            adaround="adaround" in names,
        )

    @property
    def uncorrected(self) -> "CalibrationSpec":
        """Without corrected biases, which make a layer wrong to make up for those before it."""
        return replace(self, correct_biases=False)

    @property
    def exact(self) -> "CalibrationSpec":
        """Without what makes the float weights compute something else: tensors compare with the int8 file's."""
        return replace(self, correct_biases=False, adaround=False)


def takes_budget(target: str, precision: str) -> bool:
    """Whether a max_drop goes with the precision: of Core ML with all that are compressed."""
    return precision not in ("fp32", "fp16") if target == "coreml" else precision in REPAIRED


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One file to make: a target and a precision.

    ``max_drop``: percentage points of top-1 that int8 may lose; where it loses more, its weights are repaired, and
    where that does not suffice, layers are kept in float and it becomes ``int8-mixed``. ``keep_float``: the layers
    that int8-mixed and int8-qat keep, by name, without a search.
    ``io``: what the file takes and gives. ``uint8`` is raw pixels, and float logits; ``int8`` is pixels less 128,
    and int8 logits, with nothing in float between them, for microcontrollers. ``qat``: how int8-qat is trained.
    Of Core ML all compressed precisions take ``max_drop`` and ``keep_float``, and palettes ``group``: the outputs
    that share a table (iOS18), all without it. ``deploy``: the oldest system that a Core ML file is for; without
    it the oldest that can. ``author`` and ``license`` are what a Core ML file says of itself.
    """

    target: str
    precision: str
    calibration: CalibrationSpec = field(default_factory=CalibrationSpec)
    max_drop: Annotated[float, Between(0.0, 100.0)] | None = None
    keep_float: tuple[str, ...] = ()
    io: Literal["uint8", "int8"] = "uint8"
    qat: QatSpec = field(default_factory=QatSpec)
    group: Annotated[int, Between(1, 4096)] | None = None
    deploy: Literal["iOS15", "iOS16", "iOS17", "iOS18"] | None = None
    author: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        if self.io == "int8" and self.precision != "int8":
            raise ValueError(f"io int8 goes with precision int8, not {self.precision}")
        if self.io == "int8" and self.max_drop is not None:
            raise ValueError("io int8 leaves no layer in float, as max_drop may: leave out one of them")
        learnt = [name for name in ("correct_biases", "adaround") if name in self.calibration.repairs]
        if learnt and self.precision == QAT:
            raise ValueError(f"{QAT} learns its weights from the float ones: leave out {' and '.join(learnt)}")
        for name in ("deploy", "author", "license"):
            if getattr(self, name) and self.target != "coreml":
                raise ValueError(f"{name} goes with target coreml, not {self.target}")
        weights = self.target == "coreml" and takes_budget(self.target, self.precision)
        if self.max_drop is not None and not takes_budget(self.target, self.precision):
            raise ValueError(f"max_drop goes with precision {' or '.join(REPAIRED)}, not {self.precision}")
        if self.group is not None and not (weights and self.precision.startswith("pal")):
            raise ValueError(f"group goes with pal2 to pal8 of coreml, not {self.target} {self.precision}")
        if self.keep_float and self.precision not in ("int8-mixed", QAT) and not weights:
            raise ValueError(f"keep_float goes with precision int8-mixed or {QAT}, not {self.precision}")
        if self.keep_float and self.max_drop is not None and not weights:
            raise ValueError("keep_float names the layers that max_drop would search for: leave out one of them")

    @property
    def name(self) -> str:
        return f"{self.target}-{self.precision}{'' if self.io == 'uint8' else f'-io-{self.io}'}"

    @property
    def budget(self) -> float | None:
        """The max_drop that layers are searched for, or None where none is searched."""
        if self.precision == "int8-mixed" and not self.keep_float and self.max_drop is None:
            return DEFAULT_MAX_DROP
        return self.max_drop


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSpec:
    """At least ``samples`` inferences and ``seconds`` per file, in ``blocks`` taken in turn with the others.

    ``cool_down_seconds``: how long a block waits at most for a device that is too hot; 0: not at all.
    """

    devices: tuple[str, ...] = ("local",)
    threads: tuple[Count, ...] = (1,)
    samples: Count = 1024
    seconds: NotNegative = 60.0
    blocks: Count = 5
    warmup: Count = 10
    warmup_seconds: NotNegative = 2.0
    cool_down_seconds: NotNegative = 120.0

    def __post_init__(self) -> None:
        for name in ("devices", "threads"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name one or more")


QUICK = BenchSpec(samples=128, seconds=10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSpec:
    """``reference``: the variant that the others are compared with; empty for the float one.

    The budget of the pick: ``max_drop`` in points of top-1 below the reference, ``max_latency_ms`` of the p50 on
    each device, ``max_size_bytes`` of the file. None: no limit of that kind.
    """

    title: str = ""
    reference: str = ""
    max_drop: Annotated[float, Between(0, 100)] | None = None
    max_latency_ms: Annotated[float, Between(0.001)] | None = None
    max_size_bytes: Annotated[int, Between(1)] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    description: str = ""
    model: ModelSpec
    data: DataSpec
    train: TrainSpec
    prune: tuple[PruneSpec, ...] = ()
    variant: tuple[Variant, ...] = ()
    bench: BenchSpec = field(default_factory=BenchSpec)
    report: ReportSpec = field(default_factory=ReportSpec)

    def __post_init__(self) -> None:
        names = [variant.name for variant in self.variant]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"variant: {', '.join(twice)} stands twice")
        kept = [one.keep_macs for one in self.prune if one.keep_macs is not None]
        if any(after >= before for before, after in pairwise(kept)):
            raise ValueError(f"prune: each keep_macs must be less than the one before, not {kept}")
        if (reference := self.report.reference) and reference not in names:
            choices = f"; choose from {', '.join(names)}{nearest(reference, names)}" if names else ""
            raise ValueError(f"report.reference: {reference!r} is no variant of this recipe{choices}")


def path_of(name: str) -> Path:
    """The file of a shipped recipe's name or of a path. Raises UsageError with the choices."""
    if (path := Path(name)).suffix == ".toml":
        if not path.is_file():
            raise UsageError(f"no such recipe file: {path}")
        return path
    known = plugins.names("recipes")
    if name not in known:
        raise UsageError(
            f"unknown recipe {name!r}; choose from {', '.join(known)}, or give a path that ends in .toml"
            f"{nearest(name, known)}"
        )
    return plugins.folder("recipes") / f"{name}.toml"


def load(name: str) -> Recipe:
    """The recipe of a shipped name or a path. Raises RecipeError with every fault of the file."""
    return parse(text_of(name), str(path_of(name)))


def text_of(name: str) -> str:
    """The TOML of a shipped name or a path. Raises UsageError or RecipeError."""
    path = path_of(name)
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except UnicodeDecodeError as error:
        raise RecipeError(str(path), [f"not TOML, which is UTF-8: {error}"]) from error


def parse(text: str, source: str) -> Recipe:
    """The recipe that *text* (TOML) holds. Raises RecipeError; *source* names the file in it."""
    try:
        return decode(Recipe, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(source, [f"not TOML: {error}"]) from error
    except SchemaError as error:
        raise RecipeError(source, error.faults) from error


def from_anywhere(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths, so that a run can be continued from another folder."""
    train = recipe.train
    if train.finetune and train.finetune.weights != IMAGENET:
        train = replace(train, finetune=replace(train.finetune, weights=_absolute(train.finetune.weights)))
    if train.distill:
        train = replace(train, distill=replace(train.distill, teacher=_absolute(train.distill.teacher)))
    return replace(recipe, train=train, model=absolute(recipe.model))


def absolute(model: ModelSpec) -> ModelSpec:
    """The model with the absolute path of its file."""
    path, colon, function = model.name.rpartition(":")
    name = model.name  # a folder may be called like a model
    if path.endswith(".py"):
        name = f"{_absolute(path)}{colon}{function}"
    elif name.endswith(".pt2"):
        name = _absolute(name)
    return replace(model, name=name)


def text_for(recipe: Recipe) -> str:
    """The TOML that `parse` reads back as *recipe*."""
    return toml.dumps(encode(recipe, defaults=False))


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name


def for_model(
    model: ModelSpec, source: str, contract: Preprocess, *, epochs: int, weights: str | None = None
) -> str:
    """The text of a recipe that trains *model*; the user finds it in the run folder, to edit.

    With *weights* it fine-tunes: the last layer first, then all of the network, at a lower rate.
    """
    train: dict[str, Any] = {"epochs": epochs}
    if weights:
        train |= {"learning_rate": 5e-4, "finetune": {"weights": weights, "freeze_epochs": min(2, epochs - 1)}}
    size = {"height": contract.height, "width": contract.width}
    preprocess = {**size, **encode(contract, defaults=False)}
    return toml.dumps(
        {
            "model": encode(model, defaults=False),
            "data": {"source": source, "preprocess": preprocess},
            "train": train,
        }
    )
