"""Runs of recipes in folders of their own: one after the other, several at once here, or on a cluster through Ray.

A job that was cut off goes on where it was when it is started again, as the run that it is.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from edgekit import pipeline
from edgekit.benchstage import Listener
from edgekit.errors import EdgekitError, UsageError
from edgekit.requires import require

Say = Callable[[str], None]
STOP_S = 60.0  # that a job has to end after Ctrl-C
REACH_S = 10.0  # that a cluster has to answer
RAY_CPUS = 4  # that one job takes of a node at most: small trainings gain little from more


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """``edgekit run`` of the recipe that lies in the run folder *out*, with the data *source*."""

    name: str
    out: Path
    source: str
    until: str

    @property
    def recipe(self) -> Path:
        return self.out / "recipe.toml"

    @property
    def command(self) -> list[str]:
        run = [sys.executable, "-m", "edgekit", "run", str(self.recipe), "--data", self.source]
        return [*run, "--out", str(self.out), "--until", self.until]


def in_turn(jobs: Sequence[Job], listener: Listener) -> dict[str, str]:
    """Run the jobs in this process; what each that failed says, by name."""
    failed = {}
    for job in jobs:
        listener.say(f"sweep: {job.name}")
        try:
            pipeline.run(str(job.recipe), listener=listener, data=job.source, out=job.out, until=job.until)
        except EdgekitError as error:
            failed[job.name] = str(error)
    return failed


def at_once(jobs: Sequence[Job], count: int, say: Say) -> dict[str, str]:
    """Run *count* of the jobs at a time, each in a process; what each that failed says, by name.

    The processes share the machine's cores, and with several GPUs each has one.
    """
    gpus, threads = _gpus(), max(1, (os.cpu_count() or 1) // count)
    places: SimpleQueue[int] = SimpleQueue()
    for place in range(count):
        places.put(place)
    running: dict[str, subprocess.Popen[str]] = {}

    def work(job: Job) -> str:
        place = places.get()
        gpu = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if len(gpus) > 1 else {}
        try:
            with _started(job, {"OMP_NUM_THREADS": str(threads), **os.environ, **gpu}) as process:
                running[job.name] = process
                return _followed(process, lambda line: say(f"{job.name}: {line}"))
        finally:
            running.pop(job.name, None)
            places.put(place)

    with ThreadPoolExecutor(count) as pool:
        futures = {job.name: pool.submit(work, job) for job in jobs}
        try:
            wait(futures.values())
        except BaseException:
            say(f"sweep: ends {', '.join(running)}; Ctrl-C again leaves at once")
            _end(list(running.values()), pool, list(futures.values()))
            raise
    return {name: told for name, future in futures.items() if (told := future.result())}


def _end(
    processes: Sequence["subprocess.Popen[str]"], pool: ThreadPoolExecutor, futures: Sequence["Future[str]"]
) -> None:
    """Interrupt what runs, as Ctrl-C does, and kill what does not end."""
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.send_signal(signal.SIGINT)
    try:
        wait(futures, STOP_S)
    finally:
        for process in processes:
            process.kill()


def on_ray(jobs: Sequence[Job], address: str, say: Say) -> dict[str, str]:
    """Run the jobs on a Ray cluster; what each that failed says, by name.

    Without an *address* it is the cluster that this machine is part of, or one of this machine alone.
    Raises MissingDependency, and UsageError where no cluster answers.
    """
    with _cluster(address) as ray:
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus = min((int(one["CPU"]) for one in nodes if one.get("CPU", 0) >= 1), default=1)
        gpus = 1 if any(one.get("GPU") for one in nodes) else 0
        say(f"sweep: {_count(jobs, 'job')} on {_count(nodes, 'machine')} of Ray")
        # It dies with its machine and is started again elsewhere: the run goes on where it was.
        remote = ray.remote(num_cpus=min(cpus, RAY_CPUS), num_gpus=gpus, max_retries=3)(_there)
        waiting = {remote.remote(job): job for job in jobs}
        failed: dict[str, str] = {}
        try:
            while waiting:
                (ready,), _ = ray.wait([*waiting])
                job = waiting.pop(ready)
                try:
                    where, told, lines = ray.get(ready)
                except ray.exceptions.RayError as error:  # its machine is gone for good, or full
                    where, told, lines = "Ray", str(error).strip().splitlines()[0], []
                for line in lines:
                    say(f"{job.name}: {line}")
                say(f"sweep: {job.name} {'failed' if told else 'is done'} on {where}")
                if told:
                    failed[job.name] = told
        except BaseException:
            for reference in waiting:
                ray.cancel(reference)
            ray.wait([*waiting], num_returns=len(waiting), timeout=STOP_S)
            raise
        return failed


def check_ray(address: str) -> None:
    """Find now what would fail after the training. Raises MissingDependency, and UsageError for no such place."""
    require("ray", feature="A sweep on a cluster", extra="sweep")
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon and address in ("", "auto", "local"):
        return
    if not host or not port.isdigit():
        raise UsageError(f"--ray {address}: no address of a Ray cluster, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--ray {address}: nothing answers there: {error}") from error


def _count(things: Sequence[object], word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster at *address*."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    ray = require("ray", feature="A sweep on a cluster", extra="sweep")
    try:
        ray.init(address=address or None, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (ConnectionError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        raise UsageError(f"--ray {address}: no Ray cluster can be reached there: {line}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _there(job: Job) -> tuple[str, str, list[str]]:
    """On a machine of the cluster: its name, what went wrong, and what was said."""
    host, lines = socket.gethostname(), list[str]()
    if not job.recipe.is_file():
        return host, f"{host} does not see {job.recipe}: --out must lie on a disk that all machines share", lines
    with _started(job, os.environ) as process:
        return host, _followed(process, lines.append), lines


@contextmanager
def _started(job: Job, environment: Mapping[str, str]) -> "Iterator[subprocess.Popen[str]]":
    """The job's process, which does not hear the terminal's Ctrl-C itself; it ends before the body is left."""
    process = subprocess.Popen(
        job.command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    with process:
        try:
            yield process
        except BaseException:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_S)
            finally:
                process.kill()
            raise


def _followed(process: "subprocess.Popen[str]", say: Say) -> str:
    """What went wrong in the process, once it is over; all else that it tells is passed on."""
    assert process.stderr is not None
    wrong: list[str] = []
    for line in process.stderr:
        if wrong or line.startswith("edgekit: "):
            wrong.append(line.rstrip().removeprefix("edgekit: "))
        elif text := line.strip():
            wrong += ["Traceback"] if text.startswith("Traceback") else []
            say(text)
    status = process.wait()
    return "\n".join(wrong) or f"it ended with status {status}" if status else ""


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


def usual() -> int:
    """How many jobs run at once where nothing is said: one a GPU; without any, one has the whole machine."""
    return max(1, len(_gpus()))
