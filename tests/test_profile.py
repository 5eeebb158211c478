"""What a layer costs more in float: measured by pieces, with a clock that the test holds."""

from pathlib import Path

import pytest

from edgekit import convert, profile
from edgekit.recipe import CalibrationSpec, Variant
from edgekit.sensitivity import remedies, sensitivity
from tests import guilty_models

LAYERS = {"model.2", "model.4.pad", "model.4", "model.6", "model.8", "logits"}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A float file and its int8 one."""
    out, source = tmp_path_factory.mktemp("files"), guilty_models.source("none")
    spec = CalibrationSpec(images=200, method="min-max")
    variants = [Variant(target="tflite", precision=name, calibration=spec) for name in ("fp32", "int8")]
    made = convert.convert(source, variants, guilty_models.images(64, seed=4)[0], out, lambda *_: None)
    return made[0].path, made[1].path


class Clock:
    """Each call is *step* later than the one before, but in float pieces, which are every other one, *slower*."""

    def __init__(self, step: int, slower: int, jitter: int = 0) -> None:
        self.now, self.calls, self.step, self.slower, self.jitter = 0, 0, step, slower, jitter

    def __call__(self) -> int:
        # One call for the end; then each round two for the whole file, two for each piece, float after int8; from
        # the tenth round that counts on, one to see whether it is the end.
        turn, place = self._place()
        ends_float_piece = self.calls > 0 and place >= 2 and (place - 2) % 4 == 3
        self.now += self.step + (self.slower + self.jitter * (turn % 2) if ends_float_piece else 0)
        self.calls += 1
        return self.now

    def _place(self) -> tuple[int, int]:
        each, plain = 2 + 4 * len(LAYERS), profile.LEAST_ROUNDS + 2
        place = self.calls - 1
        if place < each * plain:
            return divmod(place, each)
        turn, place = divmod(place - each * plain, each + 1)
        return turn + plain, place - 1


def test_the_extra_time_of_each_layer_is_a_share_of_the_int8_files(both: tuple[Path, Path]) -> None:
    found = profile.costs(*both, clock=Clock(step=100, slower=30))
    assert found.shares == dict.fromkeys(found.shares, 0.3)
    assert found.shares.keys() == LAYERS
    assert (found.int8_ms, found.doubt, found.sound) == (1e-4, 0.0, True)


def test_a_machine_that_is_too_busy_is_not_believed(both: tuple[Path, Path]) -> None:
    found = profile.costs(*both, clock=Clock(step=100, slower=0, jitter=200))
    assert found.doubt > profile.DOUBT
    assert not found.sound


def test_this_machine_measures_something(both: tuple[Path, Path]) -> None:
    found = profile.costs(*both)
    assert 0 < found.int8_ms < 100
    assert found.shares.keys() == LAYERS
    assert all(abs(share) < 20 for share in found.shares.values())


def test_layers_that_are_in_float_already_cost_nothing(both: tuple[Path, Path]) -> None:
    assert profile.costs(both[0], both[0]).shares == {}


def test_remedies_are_weighed_by_time(both: tuple[Path, Path]) -> None:
    layers = sensitivity(*both, guilty_models.images(8, seed=5)[0])
    cheap = {"model.8", "logits"}  # who reads model.8 goes with it
    found = {one.name: one.cost for one in remedies(layers, dict.fromkeys(LAYERS - cheap, 9.0))}
    assert (found["model.8"], found["logits"]) == (0.01, 0.01)
    assert min(found["model.2"], found["model.4"], found["model.6"]) > 9
    assert found != {one.name: one.cost for one in remedies(layers)}
