"""A grid of budgets and precisions: shared stages, several jobs, interruptions, and the page at the end."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from edgekit import checkpoint, grid, jobs, models, plugins, recipe, runs, toml
from edgekit.cli import main
from edgekit.errors import MissingDependency, UsageError
from edgekit.jobs import Job
from edgekit.models.cost import cost
from edgekit.prunespec import PruneSpec
from edgekit.sweep import sweep
from tests.test_pipeline import ROOT, SMALL, Silent, hidden, living

PRUNE = """
[[prune]]
keep_macs = 0.9
epochs = {epochs}
images = 64
importance = "magnitude"
"""


def small(folder: Path, *, epochs: int = 1) -> str:
    path = folder / "small.toml"
    text = SMALL.format(epochs=1, seconds=0.2).replace("width = 0.1", "width = 0.2")
    path.write_text(text + PRUNE.format(epochs=epochs))
    return str(path)


@pytest.mark.parametrize("name", plugins.names("recipes"))
def test_a_recipe_written_as_toml_is_read_back(name: str) -> None:
    found = recipe.load(name)
    assert recipe.parse(recipe.text_for(found), name) == found


def test_any_text_survives_as_toml() -> None:
    import tomllib

    value = {"a b": 'quoted "text"\n\x7f', "list": [1, 2.5, True], "t": {"x.y": {"z": []}}, "many": [{"a": 1}, {}]}
    assert tomllib.loads(toml.dumps(value)) == value


@pytest.mark.parametrize(
    ("keep", "precisions", "change", "fault"),
    [
        ((0.5,), ("fp32",), "", "one budget and one precision are no grid: edgekit prune"),
        ((1.0,), ("fp32",), "", "one budget and one precision are no grid: edgekit run"),
        ((0.5, 1.5), (), "", r"--keep-macs 1\.5: a share"),
        ((0.5, float("nan")), (), "", "--keep-macs nan: a share"),
        ((0.5, 0.0), (), "", "--keep-macs 0: a share"),
        ((0.5, 0.5), (), "", r"names 0\.5 twice"),
        ((0.5, 0.7), ("int8", "int8"), "", "names int8 twice"),
        ((0.5, 0.7), ("int9",), "", "unknown precision for tflite 'int9'.*did you mean 'int8'"),
        ((0.5, 0.7), (), "[[prune]]\nkeep_latency = 0.2", "in several sections and to a latency"),
    ],
)
def test_what_is_no_grid_is_told(
    tmp_path: Path, keep: tuple[float, ...], precisions: tuple[str, ...], change: str, fault: str
) -> None:
    found = recipe.parse(Path(small(tmp_path)).read_text() + change, "small.toml")
    with pytest.raises(UsageError, match=fault):
        grid.grid(found, keep, precisions, "tflite")


def test_a_grid_takes_the_settings_of_the_recipe(tmp_path: Path) -> None:
    text = Path(small(tmp_path)).read_text().replace('"int8"', '"int8"\ncalibration = { images = 99 }')
    made = grid.grid(recipe.parse(text, "small.toml"), (0.5, 1.0), ("int8", "fp16"), "tflite")
    assert list(made) == ["dense", "keep0.5"]
    assert made["dense"].prune == ()
    (spec,) = made["keep0.5"].prune
    assert (spec.keep_macs, spec.importance) == (0.5, "magnitude")
    assert [(one.name, one.calibration.images) for one in made["dense"].variant] == [
        ("tflite-int8", 99),
        ("tflite-fp16", 256),
    ]


def test_a_section_to_a_latency_becomes_one_to_products() -> None:
    [made] = grid.sections((PruneSpec(keep_latency=0.5, device="fake://pi5", precision="int8", epochs=7),), 0.4)
    assert made == PruneSpec(keep_macs=0.4, epochs=7)


@pytest.mark.parametrize(
    ("written", "share", "made"),
    [
        ((), 0.35, (0.35,)),
        ((0.5,), 0.7, (0.7,)),
        ((0.8, 0.5), 0.5, (0.8, 0.5)),
        ((0.8, 0.5), 0.35, (0.74, 0.35)),
        ((0.8, 0.5), 0.9, (0.96, 0.9)),
        ((0.7, 0.4, 0.2), 0.6, (0.85, 0.7, 0.6)),
        ((0.8, 0.5, None), 0.35, (0.74, 0.35, None)),
        ((None, 0.5), 0.35, (None, 0.35)),
        ((None, None), 0.35, (0.35, None)),
        ((1.0, None), 0.35, (0.35, None)),
    ],
)
def test_several_sections_go_the_same_way_to_each_budget(
    written: tuple[float | None, ...], share: float, made: tuple[float | None, ...]
) -> None:
    """None: a section that makes zeros and removes no channels."""
    recipe_has = tuple(
        PruneSpec(keep_macs=kept, sparsity=None if kept else 0.7, epochs=5 + place)
        for place, kept in enumerate(written)
    )
    found = grid.sections(recipe_has, share)
    assert tuple(one.keep_macs for one in found) == made
    assert [one.epochs for one in found] == [one.epochs for one in recipe_has or found]
    assert [one.sparsity for one in found] == [one.sparsity for one in recipe_has or found]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--keep-macs", "0.5,x"], "expected shares such as 1.0,0.7,0.5, got '0.5,x'"),
        (["--keep-macs", "0.5,0.01"], "--keep-macs 0.01 cannot be met: the least reachable is 0."),
        (["--keep-macs", "0.5,0.6", "--jobs", "9999"], "--jobs 9999: this machine has"),
        (["--keep-macs", "0.5,0.6", "--until", "prun"], "unknown stage 'prun'"),
        (["--keep-macs", "0.5,0.6", "--target", "onnx"], "--target is of --quantize"),
        (["--keep-macs", "0.5,0.6", "--data", "nowhere"], "no such data: 'nowhere'"),
        (["--keep-macs", "0.5,0.6", "--trained", "."], "holds no finished training of this recipe"),
    ],
)
def test_bad_input_is_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    out = tmp_path / "out"
    try:
        status = main(["sweep", small(tmp_path), "--out", str(out), *words])
    except SystemExit as ended:
        status = int(str(ended.code))
    assert status == (1 if "nowhere" in words else 2)
    assert said in capsys.readouterr().err
    assert not (out / "dense" / "train").exists()


def test_a_recipe_without_training_is_told(tmp_path: Path) -> None:
    text = Path(small(tmp_path)).read_text()
    (tmp_path / "small.toml").write_text(text.partition("[train]")[0])
    with pytest.raises(UsageError, match="train: missing; it is required"):
        sweep(str(tmp_path / "small.toml"), (1.0, 0.5), listener=Silent())


def test_a_cluster_without_ray_or_without_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    with pytest.raises(UsageError, match="nothing answers there"):
        jobs.check_ray("127.0.0.1:9")
    with pytest.raises(UsageError, match="no address of a Ray cluster"):
        jobs.check_ray("nowhere")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingDependency, match=r"needs the package ray: pip install 'edgekit\[sweep\]'"):
        jobs.check_ray("")


@pytest.mark.slow
def test_a_sweep_shares_its_stages_and_ends_in_one_comparison(tmp_path: Path) -> None:
    path, out = small(tmp_path), tmp_path / "out"
    run, points, comparison = sweep(path, (1.0, 0.6), listener=Silent(), precisions=("fp32", "int8"), out=out)
    assert comparison is not None
    (group,) = comparison.groups
    names = ["dense-fp32", "dense-int8", "keep0.6-fp32", "keep0.6-int8"]
    assert [row.name for row in group.rows] == names
    assert group.reference == "dense-fp32"
    assert "keep0.6: " in run.report.read_text()
    found = [checkpoint.read(runs.Run(folder=out / name).checkpoint) for name in ("dense", "keep0.6")]
    macs = [cost(models.restore(one), 32, 32).macs for one in found]
    assert 0.594 <= macs[1] / macs[0] <= 0.6
    assert [point.kept_macs for point in points] == [1.0, macs[1] / macs[0]]
    assert (out / "keep0.6" / "train").resolve() == (out / "dense" / "train").resolve()
    results, made = runs.collect([out])
    assert [one.name for one in made] == names
    assert len({one.artifact.sha256 for one in results}) == 4

    before = {path: path.stat().st_mtime_ns for path in out.rglob("model.safetensors")}
    other = Silent()
    run, points, _ = sweep(
        path, (0.8, 0.6), listener=other, precisions=("fp32",), out=out, until="convert", trained=None
    )
    assert "sweep: 1 of 2 runs done already" in other.said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert sorted(path.name for path in run.artifacts.glob("*.tflite")) == [
        "keep0.6-fp32.tflite",
        "keep0.8-fp32.tflite",
    ]
    assert not hidden(out)

    trained = tmp_path / "again"
    sweep(path, (0.6, 0.5), listener=other, out=trained, trained=out / "dense", until="train")
    weights = [checkpoint.read(folder / "dense/train/best").weights_sha256 for folder in (out, trained)]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_sweep_goes_through_all_sections(tmp_path: Path) -> None:
    path, out, listener = Path(small(tmp_path, epochs=0)), tmp_path / "out", Silent()
    path.write_text(path.read_text() + PRUNE.format(epochs=0).replace("0.9", "0.6"))
    run, points, _ = sweep(str(path), (1.0, 0.8), listener=listener, out=out, until="prune")
    assert "sweep: keep0.8 is pruned to 0.95, 0.8 of the dense network in turn" in listener.said
    pruned = runs.Run(folder=run.folder / "keep0.8")
    dense, *kept = [
        cost(models.restore(checkpoint.read(one)), 32, 32).macs
        for one in (pruned.dense, pruned.pruned(1), pruned.pruned(2))
    ]
    assert 0.9405 <= kept[0] / dense <= 0.95
    assert 0.792 <= kept[1] / dense <= 0.8
    assert [point.kept_macs for point in points] == [1.0, kept[1] / dense]


@pytest.mark.parametrize("count", [1, 2])
def test_a_job_that_fails_does_not_end_the_others(tmp_path: Path, count: int) -> None:
    wanted = [
        Job(name=name, out=tmp_path / name, source="digits", until="train") for name in ("one", "two", "three")
    ]
    for job in wanted:
        job.out.mkdir()
        job.recipe.write_text("[model]\nnme = 'x'\n")
    failed = jobs.at_once(wanted, count, lambda _: None) if count > 1 else jobs.in_turn(wanted, Silent())
    assert list(failed) == ["one", "two", "three"]
    assert all("model.nme: unknown key; did you mean 'name'?" in told for told in failed.values())


def command(path: str, out: Path, *more: str) -> list[str]:
    words = ["sweep", path, "--keep-macs", "0.7,0.5", "--quantize", "fp32", "--until", "convert"]
    return [sys.executable, "-m", "edgekit", *words, "--out", str(out), *more]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.long)])
def test_an_interrupt_ends_all_jobs_and_the_same_command_goes_on(tmp_path: Path, number: int) -> None:
    path, out = small(tmp_path, epochs=6), tmp_path / "out"
    process = subprocess.Popen(
        command(path, out, "--jobs", "2"),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        start_new_session=True,
    )
    states = [out / name / "prune/1/train/state.pt" for name in ("keep0.7", "keep0.5")]
    deadline = time.monotonic() + 200
    while not all(state.exists() for state in states):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    sessions = children(process.pid)
    assert len(sessions) == 2
    process.send_signal(number)
    _, err = process.communicate(timeout=100)
    assert process.returncode == (130 if number == signal.SIGINT else 143), err
    assert "Traceback" not in err
    assert not [living(session) for session in [process.pid, *sessions] if living(session)]
    assert not hidden(out)
    done = subprocess.run(command(path, out), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    assert "train: done already" in done.stderr
    for name in ("keep0.7", "keep0.5"):
        epochs = (out / name / "prune/1/train/metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in epochs] == [1, 2, 3, 4, 5, 6]


def children(parent: int) -> list[int]:
    """The processes that a process started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent:
            found.append(int(path.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'edgekit[sweep]'")
def test_a_local_ray_runs_the_jobs_and_the_next_sweep_finds_them_done(tmp_path: Path) -> None:
    path, out = small(tmp_path), tmp_path / "out"
    done = subprocess.run(
        command(path, out, "--ray", "local"), capture_output=True, text=True, env=environment(), timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name in ("dense", "keep0.7", "keep0.5"):
        assert f"sweep: {name} is done on " in done.stderr
    assert sorted(path.name for path in (out / "artifacts").glob("*.tflite")) == [
        "keep0.5-fp32.tflite",
        "keep0.7-fp32.tflite",
    ]
    again = Silent()
    sweep(path, (0.7, 0.5), listener=again, precisions=("fp32",), out=out, until="convert")
    assert "sweep: 2 of 2 runs done already" in again.said
