"""A run folder: the recipe that it follows, what each stage left, and which stages are done.

recipe.toml    a copy of the recipe
run.json       the data's source, and per finished stage the key of what it was made from
train/         best/ and last/ checkpoints, metrics.jsonl
prune/N/       of a recipe with [[prune]]: its N-th section's, with train/best as above
artifacts/     model files with their sidecars
results/ADDR/  one result an artifact
report.html
"""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit import artifact as artifacts
from edgekit import files, recipe, result
from edgekit.artifact import Artifact
from edgekit.errors import UsageError
from edgekit.recipe import Recipe
from edgekit.result import Result
from edgekit.schema import SchemaError, decode, encode

FORMAT = 1
RECIPE, STATE, PRUNE, CHECKPOINT = "recipe.toml", "run.json", "prune", Path("train", "best")


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """``done``: stage, or one item of it, and the key of its inputs."""

    format: int = FORMAT
    name: str
    source: str
    done: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    folder: Path

    @property
    def dense(self) -> Path:
        """The trained network before any pruning."""
        return self.folder / CHECKPOINT

    def pruned(self, number: int) -> Path:
        """What the recipe's pruning of that number, from 1 on, leaves; 0 is the dense network."""
        return self.folder / PRUNE / str(number) / CHECKPOINT if number else self.dense

    @property
    def checkpoint(self) -> Path:
        """What is converted: the trained network, after the recipe's last pruning."""
        return self.pruned(len(self.recipe().prune) if (self.folder / RECIPE).is_file() else 0)

    @property
    def artifacts(self) -> Path:
        return self.folder / "artifacts"

    def results(self, address: str) -> Path:
        return self.folder / "results" / folder_of(address)

    @property
    def report(self) -> Path:
        return self.folder / "report.html"

    def state(self) -> State | None:
        """What is done, or None for a folder without a run. Raises UsageError for a damaged one."""
        path = self.folder / STATE
        if not path.is_file():
            return None
        try:
            state = decode(State, json.loads(path.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError, SchemaError) as error:
            raise UsageError(f"{path} is damaged ({error}): restore it, or give another --out") from error
        if state.format != FORMAT:
            raise UsageError(f"{path} has format {state.format}; this edgekit reads format {FORMAT}")
        return state

    def recipe(self) -> Recipe:
        return recipe.load(str(self.folder / RECIPE))

    def check(self, source: str) -> None:
        """Raises UsageError when the folder holds something else than a run on that data."""
        state = self.state()
        if state is None and self.folder.exists() and (not self.folder.is_dir() or any(_visible(self.folder))):
            raise UsageError(f"{self.folder} exists and is no run of edgekit: give another --out")
        begun = state is not None and (state.done or (self.folder / "train").exists())
        if state is not None and begun and state.source != source:
            raise UsageError(
                f"{self.folder} is a run on the data {state.source}, not {source}: give another --out, "
                "or the same --data"
            )

    def begin(self, name: str, source: str, recipe_text: str) -> None:
        """Make the folder, or go on with it under a recipe that may have changed. The caller holds the lock."""
        for pattern in (".*.part*", ".*.old*"):  # what a killed process left half-written
            for path in self.folder.rglob(pattern):
                files.remove(path)
        state = replace(self.state() or State(name=name, source=source), source=source)
        files.write_text(self.folder / RECIPE, recipe_text)
        self._write(replace(state, name=name))

    def is_done(self, item: str, key: str) -> bool:
        state = self.state()
        return state is not None and state.done.get(item) == key

    def mark(self, item: str, key: str) -> None:
        state = self.state()
        assert state is not None
        self._write(replace(state, done={**state.done, item: key}))

    def guard(self, *, may_resume: bool) -> None:
        """Raises UsageError where going on would replace a training that the user did not ask to replace.

        For a run whose training is not the one that is wanted, or not done.
        """
        state = self.state()
        if state is not None and "train" in state.done:
            raise UsageError(
                f"{self.folder} was trained with other settings or other data: --force train trains again and "
                "replaces it; --out gives this run a folder of its own"
            )
        if not may_resume and (self.folder / "train").exists():
            raise UsageError(
                f"{self.folder} holds a training that was cut off: --resume goes on with it, --force trains "
                "anew, --out gives this one a folder of its own"
            )

    def forget(self, stage: str) -> None:
        """Make a stage and its items undone."""
        state = self.state()
        if state is not None:
            kept = {name: key for name, key in state.done.items() if name.partition("/")[0] != stage}
            self._write(replace(state, done=kept))

    def _write(self, state: State) -> None:
        files.write_json(self.folder / STATE, encode(state))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second edgekit. The system frees the lock when the process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.seek(0)
                holder = stream.read().strip() or "unknown"
                raise UsageError(
                    f"{self.folder} is in use by another edgekit (process {holder}): wait for it, or give "
                    "another --out"
                ) from None
            stream.truncate(0)
            stream.write(str(os.getpid()))
            stream.flush()
            yield


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.name != ".lock")


def folder_of(address: str) -> str:
    """The name of the folder for a device's results."""
    return re.sub(r"[^\w.-]+", "-", address)


def is_run(path: Path) -> bool:
    return (path / STATE).is_file()


def recipe_text(path: Path) -> str:
    """The recipe that a run followed, as it was written; empty where it followed none."""
    file = path / RECIPE
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def read_artifacts(folder: Path) -> list[Artifact]:
    """Every artifact in *folder* that has a sidecar, sorted by name. Raises ArtifactError for a damaged one."""
    if not folder.is_dir():
        return []
    paths = sorted(path.with_name(path.name.removesuffix(".json")) for path in folder.glob("*.*.json"))
    return [artifacts.read(path) for path in paths]


def collect(paths: list[Path]) -> tuple[list[Result], list[Artifact]]:
    """The results and the artifacts in files, folders of results and run folders, as `compare` takes them.

    Of a run, results of artifacts that have been made anew since are left out: they describe other files.
    """
    found: list[Result] = []
    made: list[Artifact] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
        if is_run(path):
            Run(folder=path).state()  # raises for a damaged one
            current = read_artifacts(path / "artifacts")
            hashes = {artifact.sha256 for artifact in current}
            results = [result.read(file) for file in sorted((path / "results").glob("*/*.json"))]
            found += [one for one in results if one.artifact.sha256 in hashes]
            made += current
        elif path.is_dir():
            inside = sorted(path.glob("*.json"))
            if not inside:
                raise UsageError(f"{path} is neither a run folder nor a folder of result files (*.json)")
            found += [result.read(file) for file in inside]
        else:
            found.append(result.read(path))
    return found, made


def listing_sha256(source: str) -> str:
    """A hash of a data folder's file names and sizes, without reading them; of a built-in name, the name."""
    root = Path(source)
    if not root.is_dir():
        return source
    lines = []
    for parent, folders, names in os.walk(root, followlinks=True):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            with contextlib.suppress(FileNotFoundError):  # a dangling link holds no image
                lines.append(f"{path.relative_to(root).as_posix()} {path.stat().st_size}")
    return files.sha256_of(lines)
