"""An Android phone behind a transport: what it is, how it fares, asked with nothing but its shell."""

import re
from dataclasses import dataclass

from edgekit import processor
from edgekit.errors import DeviceError
from edgekit.measure import Telemetry
from edgekit.result import DeviceInfo
from edgekit.transport import Transport, output

PROPERTIES = {
    "maker": "ro.product.manufacturer",
    "model": "ro.product.model",
    "soc_maker": "ro.soc.manufacturer",
    "soc": "ro.soc.model",  # from Android 12 on
    "platform": "ro.board.platform",
    "abi": "ro.product.cpu.abi",
    "release": "ro.build.version.release",
    "sdk": "ro.build.version.sdk",
    "qemu": "ro.boot.qemu",
}
MARK = "@@edgekit"
# One reading. Dumpsys takes some tens of milliseconds of a core: hence every few seconds only.
READING = f"""
echo "{MARK} uptime $(cut -d ' ' -f 1 /proc/uptime)"
echo "{MARK} free $(grep MemAvailable /proc/meminfo)"
for one in /sys/devices/system/cpu/cpufreq/policy*; do
    echo "{MARK} clock $(cat "$one/scaling_cur_freq" 2>/dev/null)"
    echo "{MARK} governor $(cat "$one/scaling_governor" 2>/dev/null)"
done
dumpsys battery 2>/dev/null | sed 's/^/{MARK} battery /'
dumpsys thermalservice 2>/dev/null | sed 's/^/{MARK} thermal /'
echo "{MARK} end"
"""
CORES = f"""
sed 's/^/{MARK} cpu /' /proc/cpuinfo 2>/dev/null
for one in /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq; do
    echo "{MARK} most $one $(cat "$one" 2>/dev/null)"
done
"""
CPU, SKIN = 0, 3  # types of temperature


@dataclass(frozen=True, kw_only=True, slots=True)
class Phone:
    info: DeviceInfo
    abi: str


def look(transport: Transport) -> Phone:
    """What the phone is. Raises DeviceError when it is none."""
    script = "".join(f'echo "{key} $(getprop {name})"\n' for key, name in PROPERTIES.items())
    script += CORES
    script += 'echo "cores $(nproc)"; echo "memory $(grep MemTotal /proc/meminfo)"; echo "kernel $(uname -r)"'
    text = output(transport, script)
    pairs = (line.partition(" ") for line in text.splitlines() if not line.startswith(MARK))
    found = {key: value.strip() for key, _, value in pairs}
    clusters, features = processor.read(*_cores(text))
    if not found.get("sdk", "").isdigit():
        raise DeviceError(f"{transport.address}: it is no phone: getprop tells no Android version")
    memory = re.search(r"\d+", found["memory"])
    soc = f"{found['soc_maker']} {found['soc']}".strip() if found["soc"] else found["platform"]
    info = DeviceInfo(
        address=transport.address,
        model=f"{found['maker']} {found['model']}".strip() or "Android device",
        cpu=soc or found["abi"],
        architecture=found["abi"],
        cores=int(found["cores"]) if found["cores"].isdigit() else 1,
        memory_bytes=int(memory[0]) * 1024 if memory else None,
        os=f"Android {found['release']} (API {found['sdk']})",
        kernel=found["kernel"],
        emulated=found["qemu"] == "1",
        soc=soc,
        clusters=clusters,
        features=features,
    )
    return Phone(info=info, abi=found["abi"])


def _cores(text: str) -> tuple[str, dict[str, int]]:
    """The phone's /proc/cpuinfo, and the highest clock of each core in kHz."""
    marked = [line[len(MARK) + 1 :] for line in text.splitlines() if line.startswith(MARK)]
    about = "\n".join(line[len("cpu ") :] for line in marked if line.startswith("cpu "))
    clocks = re.findall(r"^most \S*/cpu(\d+)/\S+ (\d+)$", "\n".join(marked), re.MULTILINE)
    return about, {number: int(khz) for number, khz in clocks}


def readings(text: str, *, at_work: bool) -> list[Telemetry]:
    """The readings in what a script with READING in it printed, in order. What the phone does not tell is None.

    *at_work*: while it measures; an idle phone's clock says nothing about the one it has at work.
    """
    lines = [line[len(MARK) + 1 :] for line in text.splitlines() if line.startswith(MARK)]
    found, current = [], list[str]()
    for line in lines:
        if line == "end":
            found.append(_reading(current, at_work))
            current = []
        else:
            current.append(line)
    return found


def _reading(lines: list[str], at_work: bool) -> Telemetry:
    def values(key: str) -> list[str]:
        return [line[len(key) + 1 :].strip() for line in lines if line.startswith(key + " ")]

    uptime = float(next(iter(values("uptime")), "0") or 0)
    free = re.search(r"\d+", " ".join(values("free")))
    clocks = [int(text) / 1000 for text in values("clock") if text.isdigit()]
    governors = sorted({text for text in values("governor") if text})
    battery = dict(line.split(": ", 1) for line in values("battery") if ": " in line)
    temperature_c, status = _thermal("\n".join(values("thermal")))
    return Telemetry(
        time_ns=int(uptime * 1e9),
        temperature_c=temperature_c,
        clock_mhz=max(clocks) if clocks and at_work else None,
        governor="+".join(governors) or None,
        throttled=None if status is None else status > 0,
        throttle=(f"thermal status {status}",) if status else (),
        free_memory_bytes=int(free[0]) * 1024 if free else None,
        battery_percent=_number(battery.get("level", "")),
        battery_temperature_c=None if (tenths := _number(battery.get("temperature", ""))) is None else tenths / 10,
    )


def _thermal(text: str) -> tuple[float | None, int | None]:
    """The highest temperature of the processor (else of the skin), and how much the phone throttles, 0 to 6.

    Only what comes from the hardware now: a list of what was cached stands before it.
    """
    _, there, current = text.partition("Current temperatures from HAL:")
    told = re.search(r"Thermal Status: (\d+)", text)
    status = int(told[1]) if told else None
    if not there:
        return None, status
    current = current.partition("Current cooling devices from HAL")[0]
    found = re.findall(r"Temperature\{mValue=(-?[\d.]+), mType=(-?\d+), mName=[^,}]*, mStatus=(\d+)\}", current)
    by_kind = {kind: [float(value) for value, of, _ in found if int(of) == kind] for kind in (CPU, SKIN)}
    degrees = by_kind[CPU] or by_kind[SKIN]
    if found:
        status = max(status or 0, *(int(one) for *_, one in found))
    return (max(degrees) if degrees else None), status


def _number(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d+)?", text.strip()) else None
