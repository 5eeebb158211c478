"""What a processor is: its kinds of cores and what they can do, from the text of Linux's /proc/cpuinfo."""

from collections.abc import Mapping
from dataclasses import dataclass

# The agent, which stands alone, has the same list. Others say nothing about the speed of a network.
FEATURES = (
    "neon", "vfpv4", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "atomics", "sve", "sve2", "sme",
    "sme2", "sse4_1", "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx_vnni_int8", "avx512f", "avx512bw",
    "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Cores of one kind. ``part``: maker, number and revision; ``max_mhz`` is None where the system hides it."""

    cores: int
    part: str
    max_mhz: float | None = None

    @property
    def words(self) -> str:
        """``4x 0x41/0xd0b r4p1 to 2400 MHz``."""
        clock = f" to {self.max_mhz:.0f} MHz" if self.max_mhz else ""
        return f"{self.cores}x {self.part or 'unknown'}{clock}"


def read(text: str, max_khz: Mapping[str, int]) -> tuple[tuple[Cluster, ...], tuple[str, ...]]:
    """The clusters, and the features that all cores have. *max_khz*: the highest clock of each core's number."""
    counts: dict[tuple[str, float | None], int] = {}
    able = set(FEATURES)
    for block in text.split("\n\n"):
        pairs = (line.partition(":") for line in block.splitlines())
        fields = {key.strip(): value.strip() for key, _, value in pairs}
        if (number := fields.get("processor")) is None:
            continue
        kind = _part(fields), max_khz[number] / 1000 if number in max_khz else None
        counts[kind] = counts.get(kind, 0) + 1
        able &= set((fields.get("Features") or fields.get("flags", "")).split())
    clusters = tuple(Cluster(cores=count, part=part, max_mhz=mhz) for (part, mhz), count in counts.items())
    return clusters, tuple(name for name in FEATURES if clusters and name in able)


def _part(fields: Mapping[str, str]) -> str:
    if "CPU part" in fields:
        maker, part, variant, revision = (
            fields.get(f"CPU {name}", "?") for name in ("implementer", "part", "variant", "revision")
        )
        return f"{maker}/{part} r{int(variant, 16) if variant != '?' else '?'}p{revision}"
    if "vendor_id" in fields:
        vendor, family, model, stepping = (
            fields.get(name, "?") for name in ("vendor_id", "cpu family", "model", "stepping")
        )
        return f"{vendor} family {family} model {model} stepping {stepping}"
    return ""
