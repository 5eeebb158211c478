"""The section ``[train]`` of a recipe, with its tables."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from edgekit.schema import Between

Count = Annotated[int, Between(1)]
Share = Annotated[float, Between(0.0, 1.0)]
Positive = Annotated[float, Between(1e-12)]
NotNegative = Annotated[float, Between(0.0)]


IMAGENET = "imagenet"  # the value of ``weights`` that names the published ones


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentSpec:
    """Random changes of a training image.

    ``flip`` mirrors it; ``shift`` and ``scale`` are shares of its size. ``crop`` is a random resized crop of at
    least this share of the area, 0 for none (https://arxiv.org/abs/1409.4842, section 6). ``policy`` is
    RandAugment with ``policy_ops`` changes of ``policy_magnitude`` of 30 (https://arxiv.org/abs/1909.13719), or
    TrivialAugment (https://arxiv.org/abs/2103.10158). ``erase`` is the chance of a random rectangle to be
    wiped out (https://arxiv.org/abs/1708.04896). ``mixup`` and ``cutmix`` are the alphas of their Beta
    distributions, 0 for none (https://arxiv.org/abs/1710.09412, https://arxiv.org/abs/1905.04899); with both,
    each batch gets one of the two.
    """

    flip: bool = True
    shift: Share = 0.1
    scale: Annotated[float, Between(0.0, 0.9)] = 0.0
    crop: Share = 0.0
    policy: Literal["none", "rand", "trivial"] = "none"
    policy_ops: Annotated[int, Between(1, 8)] = 2
    policy_magnitude: Annotated[int, Between(0, 30)] = 9
    erase: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ProgressiveSpec:
    """Small images first: the side grows from ``start`` of its full length over the first ``until`` of the epochs.

    Source: https://arxiv.org/abs/2104.00298, section 4, without its growing regularization.
    """

    start: Annotated[float, Between(0.2, 1.0)] = 0.5
    until: Annotated[float, Between(0.05, 1.0)] = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillSpec:
    """Learn from a teacher's answers as well: ``weight`` of the loss is theirs.

    ``teacher``: a run or checkpoint folder with the same classes, or a built-in name or ``torchvision:NAME``
    with its ImageNet weights. Source: https://arxiv.org/abs/1503.02531, section 2.
    """

    teacher: str
    weight: Share = 0.5
    temperature: Positive = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class QatSpec:
    """Quantization-aware training of a file (``int8-qat``), by Adam, from the float network's answers.

    ``learning_rate`` is of weights in units of their channel's largest: 1e-4 is a hundredth of a step of int8.
    ``images``: so many of the training images an epoch, drawn anew for each; 0 for all of them.
    ``distill``: the float network's share in the loss, at ``temperature``; the labels' is the rest.
    """

    epochs: Count = 2
    images: Annotated[int, Between(0)] = 0
    batch_size: Count = 128
    learning_rate: Positive = 2e-4
    distill: Share = 1.0
    temperature: Positive = 6.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSpec:
    """Start from trained weights: ``imagenet``, or a run or checkpoint folder of the same architecture.

    For the first ``freeze_epochs`` only the last layer learns. Each layer learns at ``layer_decay`` times the
    rate of the one above it (https://arxiv.org/abs/1801.06146, section 3.2).
    """

    weights: str = IMAGENET
    freeze_epochs: Annotated[int, Between(0)] = 0
    layer_decay: Annotated[float, Between(0.01, 1.0)] = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsifySpec:
    """``share`` of the weights of each 1x1 convolution become zero, the smallest first, in the first ``ramp`` of
    the training, more of them after every ``every`` steps. ``pattern = "2:4"``: two of four neighbours.
    ``spare``: layers that keep theirs.
    """

    share: Annotated[float, Between(0.2, 0.99)]
    pattern: Literal["free", "2:4"] = "free"
    ramp: Annotated[float, Between(0.0, 0.9)] = 0.5
    every: Count = 20
    spare: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pattern == "2:4" and self.share != 0.5:
            raise ValueError(f"pattern 2:4 makes half of the weights zero: share = 0.5, not {self.share:g}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainSpec:
    """``learning_rate`` is the peak after warm-up; ``ema`` the decay of the weight average, 0 for none.

    ``schedule``: half a cosine down to zero, or times ``step_factor`` after every ``step_epochs``.
    ``clip_norm``: the longest gradient, 0 for any. ``class_weights = "balanced"``: each class counts the same,
    however many images it has. ``patience``: stop after so many epochs without a better top-1, 0 for never.
    """

    epochs: Count
    batch_size: Count = 64
    optimizer: Literal["adamw", "sgd", "rmsprop"] = "adamw"
    learning_rate: Positive = 1e-3
    schedule: Literal["cosine", "step"] = "cosine"
    step_epochs: Positive = 30.0
    step_factor: Annotated[float, Between(1e-6, 1.0)] = 0.1
    momentum: Share = 0.9
    weight_decay: NotNegative = 0.01
    clip_norm: NotNegative = 0.0
    warmup_epochs: NotNegative = 1.0
    label_smoothing: Share = 0.1
    class_weights: Literal["equal", "balanced"] = "equal"
    ema: Annotated[float, Between(0.0, 0.99999)] = 0.0
    patience: Annotated[int, Between(0)] = 0
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    seed: int = 0
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    progressive: ProgressiveSpec | None = None
    distill: DistillSpec | None = None
    finetune: FinetuneSpec | None = None
    sparsify: SparsifySpec | None = None

    def __post_init__(self) -> None:
        if self.sparsify and self.patience:
            raise ValueError("patience would end the training before it is sparse: leave out patience or sparsify")
        if self.finetune and self.finetune.freeze_epochs >= self.epochs:
            raise ValueError(
                f"finetune.freeze_epochs = {self.finetune.freeze_epochs} leaves nothing of {self.epochs} epochs"
            )
