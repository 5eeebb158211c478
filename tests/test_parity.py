"""The figures of parity by hand; what counts as broken."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from edgekit.artifact import Parity
from edgekit.parity import CAP_DB, faint, images, parity, sqnr_db


def rows(*values: list[float]) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def test_by_hand() -> None:
    reference, other = rows([3, 0], [0, 4], [1, 2]), rows([3, 1], [0, 4], [2, 1])
    found = parity(reference, other)
    assert found.images == 3
    assert found.sqnr_db == round(10 * math.log10(30 / 3), 2) == 10.0  # sums of squares: 9 + 16 + 5; 1 + 1 + 1
    assert found.top1_agreement == 2 / 3
    assert found.largest_difference == 1.0


@pytest.mark.parametrize("factor", [0.9, 0.99, 1.001])
def test_a_scaled_signal(factor: float) -> None:
    reference = np.random.default_rng(0).standard_normal((50, 10)).astype(np.float32)
    assert sqnr_db(reference, reference * np.float32(factor)) == pytest.approx(
        -20 * math.log10(abs(1 - factor)), abs=0.01
    )


def test_equal_logits_reach_the_cap() -> None:
    reference = rows([1, 2], [3, 4])
    assert parity(reference, reference).sqnr_db == CAP_DB == 150
    assert parity(rows([0, 0]), rows([0, 0])).sqnr_db == 150


def test_noise_without_a_signal_is_a_number() -> None:
    found = parity(rows([0, 0]), rows([1, 0]))
    assert found.sqnr_db < -1000
    assert math.isfinite(found.sqnr_db)


def test_large_logits_do_not_overflow() -> None:
    reference = rows([1e30, 2e30])
    assert parity(reference, reference * np.float32(0.9)).sqnr_db == pytest.approx(20, abs=0.01)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="the file gives NaN or infinite logits"):
        parity(rows([1, 2]), rows([1, bad]))
    with pytest.raises(ValueError, match="the model gives NaN or infinite logits"):
        parity(rows([1, bad]), rows([1, 2]))


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the file gives logits of shape \(1, 2\), the model \(2, 2\)"):
        parity(rows([1, 2], [3, 4]), rows([1, 2]))


def verdict(precision: str, db: float, agreement: float = 1.0) -> str:
    return Parity(images=10, sqnr_db=db, top1_agreement=agreement, largest_difference=0.0).broken(precision)


def test_the_bars() -> None:
    assert verdict("fp32", 59.9) == "SQNR 59.9 dB is below the 60 dB of a sound fp32 file"
    assert verdict("fp16", 39.9) == "SQNR 39.9 dB is below the 40 dB of a sound fp16 file"
    assert verdict("fp32", 60) == verdict("fp16", 40) == verdict("int8", 3) == verdict("dyn8", 3, 0.9) == ""
    low = "top-1 agrees with the float model on 89.9 % of images, below 90 %"
    assert verdict("int8", 30, 0.899) == verdict("dyn8", 30, 0.899) == verdict("fp32", 100, 0.899) == low


def test_logits_that_fp16_cannot_hold_are_named() -> None:
    assert faint(rows([3e-9, -1e-9])) == (
        "the float model's own logits are at most 3e-09, which fp16 and int8 do not hold: an untrained network's "
        "signal dies away like that; parity tells nothing before it is trained"
    )
    assert faint(rows([0.0, -1e-3])) == ""


@pytest.mark.parametrize(("side", "count"), [(32, 256), (128, 256), (160, 163), (224, 83), (600, 64)])
def test_large_images_are_fewer(side: int, count: int) -> None:
    assert images(side, side) == count
