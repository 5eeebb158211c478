"""``mac``: this Mac, Core ML files through coremltools. ``mac://?unit=CPU_ONLY`` names what Core ML may use."""

import sys

from edgekit.device import Device
from edgekit.errors import DeviceError, UsageError
from edgekit.inventory import split
from edgekit.mac import TAKES, open_mac
from edgekit.transport.local import LocalTransport

ADDRESS, ABOUT = "mac", "this Mac, for Core ML files"


def connect(address: str, rest: str) -> Device:
    """This Mac. Raises UsageError or DeviceError, as on any other machine."""
    place, options = split(rest, TAKES)
    if place:
        raise UsageError(f"{address}: this Mac is just 'mac'; another one is mac+ssh://{place}")
    if sys.platform != "darwin":
        raise DeviceError(
            "mac: this machine is no Mac; another one is mac+ssh://USER@HOST, and --device reference gives the "
            "accuracy of Core ML files anywhere"
        )
    return open_mac(address, LocalTransport(address), options)
