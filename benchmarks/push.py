"""How fast a file goes to a machine over SSH, beside scp, and how often `edgekit device check` asks it something.

    python benchmarks/push.py [--rounds 10] [--megabytes 20]

Both go to a throwaway OpenSSH server on this machine, over a connection that is open already (scp through
OpenSSH's ControlMaster), in turn: A B A B ... Of edgekit two times: that of the bytes, and that of a whole push,
which looks first what is there and if there is room, and takes the SHA-256 of what arrived; scp does neither. The
ratio of the speeds is 1.00 when they are the same.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from edgekit import check  # noqa: E402
from edgekit.device import open_device  # noqa: E402
from edgekit.transport.push import parcel, push  # noqa: E402
from edgekit.transport.ssh import SshTransport  # noqa: E402
from edgekit.transport.ssh_connect import Target  # noqa: E402
from tests.openssh import OpenSsh, openssh  # noqa: E402
from tests.ssh_servers import user  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--megabytes", type=int, default=20)
    options = parser.parse_args()
    os.environ.pop("SSH_AUTH_SOCK", None)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name, "home")
        os.environ["HOME"] = str(home)
        user(home)
        with openssh(Path(name, "sshd"), home) as server:
            compare(server, home, options.rounds, options.megabytes * 1_000_000)
            count_questions(server)


def compare(server: OpenSsh, home: Path, rounds: int, size: int) -> None:
    file, there = home / "big.bin", server.place / "there"
    file.write_bytes(np.random.default_rng(0).bytes(size))
    one, given = parcel(file), ["-q", "-o", f"ControlPath={home}/master", "-o", "BatchMode=yes"]
    given += ["-i", f"{home}/.ssh/id_ed25519", "-o", f"UserKnownHostsFile={home}/.ssh/known_hosts"]
    transport = SshTransport(Target(host=server.host, port=server.port))
    transport.connect()
    master = subprocess.Popen(["ssh", *given, "-M", "-N", "-p", str(server.port), server.host])
    try:
        while not (home / "master").exists():
            time.sleep(0.05)
        times: dict[str, list[float]] = {"scp": [], "bytes": [], "push": []}
        for number in range(rounds + 1):
            began = time.perf_counter()
            target = f"{server.host}:{server.place}/by_scp"
            subprocess.run(["scp", *given, "-P", str(server.port), str(file), target], check=True)
            copied = time.perf_counter()
            transport.send(file, f"{server.place}/by_send", offset=0, sent=lambda count: None)
            sent = time.perf_counter()
            push(transport, str(there), [one], lambda text, share: None)
            ended = time.perf_counter()
            (there / one.name).unlink()
            if number:  # the first one finds cold caches
                taken = {"scp": copied - began, "bytes": sent - copied, "push": ended - sent}
                print(f"round {number}:", ", ".join(f"{name} {taken_s:.3f} s" for name, taken_s in taken.items()))
                for name, taken_s in taken.items():
                    times[name].append(taken_s)
    finally:
        transport.close()
        master.terminate()
        master.wait()
    for name, values in times.items():
        print(f"{name}: {size / median(values) / 1e6:.0f} MB/s (median of {rounds})")
    for name in ("bytes", "push"):
        ratios = [scp / own for scp, own in zip(times["scp"], times[name], strict=True)]
        print(f"{name} / scp: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


def count_questions(server: OpenSsh) -> None:
    """A `device check` whose files are not there yet, and one whose files are."""
    asked: list[str] = []
    original = SshTransport._process

    async def counted(self: Any, line: str) -> Any:
        asked.append(line)
        return await original(self, line)

    SshTransport._process = counted  # type: ignore[method-assign]
    for text in ("first", "again"):
        asked.clear()
        with closing(open_device(server.address(python=sys.executable))) as device:
            check.check(device, lambda text, share: None)
        print(f"device check, {text}: {len(asked)} commands there")


if __name__ == "__main__":
    main()
