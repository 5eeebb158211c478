"""What a phone's shell is told, to start `benchmark_model`: one visit's folder, its scripts, its lock."""

import re
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from edgekit import benchmark_model, lock, phone
from edgekit.device import Entry
from edgekit.errors import DeviceBusy, DeviceError
from edgekit.measure import Cooling, Telemetry
from edgekit.transport import Transport, output

STALE_MIN = 10  # a lock that nobody touched for so long is nobody's
POLL_S = 5.0  # between two looks at a phone that is in use, or hot
INPUT = "--input_layer=input --input_layer_value_files=input:{file} --input_layer_shape={shape}"

# Readings before, every five seconds and after. The lock is touched meanwhile.
TIMED = """
cd VISIT && rm -f log result.pb && touch LOCK && dd if=IMAGES of=first.raw bs=BYTES count=1 2>/dev/null || exit 1
READING
echo "MARK begin"
COMMAND > log 2>&1 &
pid=$!; echo $pid > bench.pid
trap 'kill $pid' TERM INT HUP
n=0
while kill -0 $pid 2>/dev/null; do
    n=$((n + 1)); sleep 0.2
    if [ $((n % 25)) -eq 5 ]; then touch LOCK; READING
    fi
done
wait $pid; status=$?
[ "$(cat bench.pid)" != $pid ] || rm -f bench.pid # else another start has come since
echo "MARK status $status"
READING
cat log
"""
PREDICT = """
cd VISIT && touch LOCK && : > outputs && i=FIRST
while [ $i -lt LAST ]; do
    rm -f one.out; touch LOCK
    dd if=IMAGES of=one.raw bs=BYTES skip=$i count=1 2>/dev/null || exit 1
    COMMAND --output_filepath=one.out > log 2>&1 &
    pid=$!; echo $pid > bench.pid
    trap 'kill $pid' TERM INT HUP
    wait $pid || { cat log; exit 1; }
    cat one.out >> outputs || exit 1
    i=$((i + 1)); echo "image $i"
done
rm -f bench.pid
"""
END_IT = "[ ! -f VISIT/bench.pid ] || kill $(cat VISIT/bench.pid) 2>/dev/null; rm -f VISIT/bench.pid"
TAKE_LOCK = """
mkdir -p VISIT || exit 1
# A lock of the future: the clock was set back since, or somebody works there and has just touched it.
ahead() { touch VISIT && [ LOCK -nt VISIT ]; }
if mkdir LOCK 2>/dev/null || [ -n "$(find LOCK -maxdepth 0 -mmin +STALE)" ] || { ahead && sleep 1 && ahead; }; then
    echo HOLDER > LOCK/holder && touch LOCK
else
    rmdir VISIT; cat LOCK/holder; exit 3
fi
"""
LOOK = "touch LOCK; READING"
WHO = """
[ -d LOCK ] || exit 0
ahead() { touch LOCK.now && [ LOCK -nt LOCK.now ]; }
held=3
[ -z "$(find LOCK -maxdepth 0 -mmin +STALE)" ] && ! { ahead && sleep 1 && ahead; } || held=0
[ $held = 0 ] || cat LOCK/holder
rm -f LOCK.now; exit $held
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shell:
    """The shell of one visit. *folder*: edgekit's there; *visit*: this visit's in it."""

    transport: Transport
    folder: str
    visit: str

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One visit at a time, in a folder of its own, which goes in the end."""
        said, status = self.say(TAKE_LOCK, 30.0, HOLDER=shlex.quote(lock.me()), STALE=str(STALE_MIN))
        address = self.transport.address
        if status == 3:
            raise DeviceBusy(address, said.strip(), lost=f"{STALE_MIN} minutes")
        if status:
            raise DeviceError(f"{address}: {self.visit} cannot be made there")
        try:
            yield
        finally:
            with suppress(DeviceError):  # where the link is gone the tool ends by itself, and the lock grows stale
                self.end()
                self.say("rm -rf VISIT LOCK", 60.0)

    def holder(self) -> str:
        """Who holds it now, or nothing."""
        said, status = self.say(WHO, 30.0, STALE=str(STALE_MIN))
        return (said.strip() or "somebody") if status == 3 else ""

    def end(self) -> None:
        """End a start whose link was lost: it would disturb the next one."""
        output(self.transport, self._filled(END_IT, {}))

    def say(
        self, script: str, limit_s: float, tick: Callable[[], None] = lambda: None, /, **values: str
    ) -> tuple[str, int]:
        """What a script prints, its words in capitals filled in, and its status. *tick* is called meanwhile."""
        lines: list[bytes] = []
        ticked = time.monotonic()

        def take(line: bytes) -> None:
            nonlocal ticked
            lines.append(line)
            if time.monotonic() - ticked >= 1.0:
                ticked = time.monotonic()
                tick()

        ended = self.transport.run(self._filled(script, values), limit_s=limit_s, feed=take)
        return b"".join(lines).decode(errors="replace") + ended.stderr, ended.status

    def _filled(self, script: str, values: dict[str, str]) -> str:
        own = {
            "READING": phone.READING.strip(),
            "MARK": phone.MARK,
            "VISIT": shlex.quote(self.visit),
            "LOCK": shlex.quote(f"{self.folder}/phone.lock"),
        }
        # In one pass: what is filled in may hold such words itself.
        return re.sub(r"\b[A-Z]{4,}\b", lambda found: {**own, **values}.get(found[0], found[0]), script)


def cool(shell: Shell, most_s: float, block: int, tell: Callable[[], None]) -> list[Cooling]:
    """The pause before a block, if any: as long as the phone says that it throttles; it knows best."""

    def look() -> Telemetry | None:
        found = phone.readings(shell.say(LOOK, 60.0)[0], at_work=False)
        return found[-1] if found else None

    first = last = look() if most_s else None
    if first is None or not first.throttled:
        return []
    began = now = time.monotonic()
    while last is not None and last.throttled and now - began < most_s:
        tell()
        time.sleep(POLL_S)
        last, now = look(), time.monotonic()
    pause = Cooling(
        block=block,
        seconds=round(now - began, 1),
        from_c=first.temperature_c,
        to_c=last.temperature_c if last else None,
        enough=last is not None and not last.throttled,
    )
    return [pause]


def command(program: str, model: str, entry: Entry, delegate: str, image: str, flags: list[str]) -> str:
    """The command line of a start on one image."""
    # The name is free: one that the model does not know is a warning, and the only input is meant.
    shape = ",".join(map(str, (1, *entry.artifact.input.shape[1:])))
    words = [program, f"--graph={model}", f"--num_threads={entry.threads}", *benchmark_model.DELEGATES[delegate]]
    return shlex.join([*words, *INPUT.format(file=image, shape=shape).split(), *flags])
