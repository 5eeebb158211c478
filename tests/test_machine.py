"""What a machine is and how it fares, read from made-up trees of /proc and /sys."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from edgekit import processor
from edgekit.agent import Described
from edgekit.processor import Cluster
from edgekit.result import DeviceInfo
from edgekit.schema import decode
from tests.test_agent import program

__all__ = ["program"]  # the fixture
ARM = """processor\t: {number}
BogoMIPS\t: 48.00
Features\t: fp asimd evtstrm aes atomics fphp asimdhp cpuid {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}
CPU revision\t: 0
"""
LITTLE = {"variant": "0x2", "part": "0xd05", "features": "asimddp"}
BIG = {"variant": "0x4", "part": "0xd0b", "features": "asimddp i8mm"}
RK3588 = "\n".join(ARM.format(number=i, **(LITTLE if i < 4 else BIG)) for i in range(6))
X86 = "processor : 0\nvendor_id : GenuineIntel\ncpu family : 6\nmodel : 167\nmodel name : Xeon\nstepping : 1\n"
X86 += "flags : fpu sse4_2 avx avx2 fma avx512_vnni amx_int8\n\n"
CLOCKS = {**dict.fromkeys("0123", 1800000), "4": 2400000, "5": 2400000}
ZONES = "sys/class/thermal/thermal_zone"
Tree = Callable[[Mapping[str, object]], None]


@pytest.fixture
def tree(tmp_path: Path, program: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """Puts files under the agent's root, which is an empty folder."""
    monkeypatch.setattr(program, "ROOT", str(tmp_path))
    monkeypatch.setattr(program, "output_of", lambda *command: "")

    def put(files: Mapping[str, object]) -> None:
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    return put


def test_clusters_parts_and_common_features(program: ModuleType, tree: Tree) -> None:
    tree({"proc/cpuinfo": RK3588, "proc/device-tree/compatible": "radxa,rock-5b\0rockchip,rk3588\0"})
    tree({f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": khz for n, khz in CLOCKS.items()})
    told = decode(Described, {k: v for k, v in program.describe().items() if k != "event"})
    assert told.clusters == (
        Cluster(cores=4, part="0x41/0xd05 r2p0", max_mhz=1800.0),
        Cluster(cores=2, part="0x41/0xd0b r4p0", max_mhz=2400.0),
    )
    assert told.clusters[1].words == "2x 0x41/0xd0b r4p0 to 2400 MHz"
    assert told.features == ("asimd", "fphp", "asimdhp", "asimddp", "atomics")  # not i8mm: the little ones lack it
    assert told.soc == "rockchip,rk3588"
    assert told.cpu == "Cortex-A55 + Cortex-A76"


@pytest.mark.parametrize(("text", "clocks"), [(RK3588, CLOCKS), (X86, {}), ("", {}), ("Hardware : X\n", {})])
def test_phones_and_the_agent_read_the_same(
    program: ModuleType, tree: Tree, text: str, clocks: dict[str, int]
) -> None:
    tree({"proc/cpuinfo": text})
    tree({f"sys/devices/system/cpu/cpu{n}/cpufreq/cpuinfo_max_freq": khz for n, khz in clocks.items()})
    clusters, features = program.clusters_and_features()
    found = processor.read(text, clocks)
    assert [decode(Cluster, one) for one in clusters] == list(found[0])
    assert tuple(features) == found[1]
    assert tuple(program.FEATURES) == tuple(processor.FEATURES)
    if text == X86:
        assert found[0] == (Cluster(cores=1, part="GenuineIntel family 6 model 167 stepping 1"),)
        assert found[1] == ("sse4_2", "avx", "fma", "avx2", "avx512_vnni", "amx_int8")


def test_a_fingerprint_tells_machines_apart_and_not_their_addresses() -> None:
    base: dict[str, Any] = {"address": "local", "model": "VM", "cpu": "Xeon", "architecture": "x86_64", "cores": 2}
    plain = DeviceInfo(**base)
    assert plain.fingerprint == DeviceInfo(**{**base, "address": "ssh://x"}).fingerprint
    assert decode(DeviceInfo, base).fingerprint == plain.fingerprint
    others = [
        DeviceInfo(**base, features=("avx2",)),
        DeviceInfo(**base, features=("avx2", "avx512_vnni")),
        DeviceInfo(**base, soc="rockchip,rk3588"),
        DeviceInfo(**base, clusters=(Cluster(cores=2, part="a"),)),
        DeviceInfo(**base, clusters=(Cluster(cores=2, part="a", max_mhz=1000.0),)),
    ]
    assert len({one.fingerprint for one in [plain, *others]}) == 6


def zone(number: int, kind: str, temp: object, **trips: tuple[str, int]) -> dict[str, object]:
    files: dict[str, object] = {f"{ZONES}{number}/type": kind, f"{ZONES}{number}/temp": temp}
    for name, (trip, value) in trips.items():
        point = f"{ZONES}{number}/trip_point_{name[1:]}"
        files |= {f"{point}_type": trip, f"{point}_temp": value}
    return files


def test_a_temperature_is_held_against_its_own_zones_limit(program: ModuleType, tree: Tree) -> None:
    hot = {"_0": ("active", 50000), "_1": ("passive", 85000), "_10": ("critical", 110000)}
    tree(zone(0, "cpu-big-thermal", 71000, **hot))
    tree(zone(1, "soc-thermal", 80000, _0=("critical", 95000)))
    tree(zone(2, "battery", 20000, _0=("passive", 15000)))  # not the processor's
    tree(zone(10, "cpu-little-thermal", 60000))
    probe = program.Probe(list)
    assert probe.limits_c == {f"/{ZONES}0": 85.0, f"/{ZONES}1": 95.0}
    reading = probe.read()
    assert (reading["temperature_c"], reading["headroom_c"]) == (80.0, 14.0)
    tree({f"{ZONES}1/temp": 96500})
    assert probe.read()["headroom_c"] == -1.5


def test_a_limit_that_is_none_is_not_told(program: ModuleType, tree: Tree) -> None:
    tree(zone(0, "x86_pkg_temp", 45000, _0=("passive", 0), _1=("passive", -274000)))
    reading = program.Probe(list).read()
    assert reading["temperature_c"] == 45.0
    assert "headroom_c" not in reading
    tree({f"{ZONES}0/temp": "N/A"})
    assert "temperature_c" not in program.Probe(list).read()


def test_a_pis_bits_are_named_and_those_of_before_do_not_count(program: ModuleType, tree: Tree) -> None:
    flags = "sys/devices/platform/soc/soc:firmware/get_throttled"
    tree({flags: "50000"})  # under-voltage and throttling, before the visit
    probe = program.Probe(list)

    def told(value: str) -> tuple[Any, Any]:
        tree({flags: value})
        reading = probe.read()
        return reading["throttled"], reading.get("throttle")

    assert told("50000") == (False, None)
    assert told("50005") == (True, ["under-voltage", "throttled"])
    assert told("50002") == (True, ["frequency capped"])
    assert told("d0000") == (True, ["soft temperature limit"])  # over now, but seen since the last reading
    assert told("d0000") == (False, None)


def test_a_pi_that_tells_through_vcgencmd(
    program: ModuleType, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = ["throttled=0x0"]
    monkeypatch.setattr(program, "output_of", lambda *command: said[0] if command[0] == "vcgencmd" else "")
    probe = program.Probe(list)
    assert probe.throttle() == []
    said[0] = "throttled=0x80008"
    assert probe.throttle() == ["soft temperature limit"]


def test_an_x86_processor_that_throttles_since_the_last_reading(program: ModuleType, tree: Tree) -> None:
    count = "sys/devices/system/cpu/cpu{}/thermal_throttle/core_throttle_count"
    tree({count.format(0): 7, count.format(1): 3})
    probe = program.Probe(list)
    assert probe.throttle() == []
    tree({count.format(1): 4})
    assert probe.throttle() == ["thermal throttling"]
    assert probe.throttle() == []


def test_a_machine_that_tells_nothing(program: ModuleType, tree: Tree) -> None:
    assert set(program.Probe(list).read()) == {"time_ns"}
    assert program.clusters_and_features() == ([], [])


def test_clocks_and_governors_of_all_policies(program: ModuleType, tree: Tree) -> None:
    policy = "sys/devices/system/cpu/cpufreq/policy"
    for number, khz, governor in ((0, 1800000, "schedutil"), (4, 2400000, "performance")):
        tree({f"{policy}{number}/scaling_cur_freq": khz, f"{policy}{number}/scaling_governor": governor})
    reading = program.Probe(list).read()
    assert (reading["clock_mhz"], reading["governor"]) == (2400.0, "performance+schedutil")


def test_files_stand_in_the_order_of_their_numbers(program: ModuleType, tree: Tree) -> None:
    for number in (10, 9, 2):
        tree(zone(number, "x", 1))
    names = [re.findall(r"\d+", path) for path in program.paths(f"/{ZONES}*/type")]
    assert names == [["2"], ["9"], ["10"]]
