"""``adb://SERIAL`` and ``adb://HOST:PORT``: a phone or a Linux machine over adb; ``adb://`` for the only one.

A Linux machine that has Python runs the agent; a phone runs TFLite's own tool, which the user has:
``adb://SERIAL?benchmark_model=PATH``, with ``&delegate=gpu`` or ``nnapi``.
"""

from edgekit import preflight
from edgekit.device import Device
from edgekit.inventory import TAKES as COMMON
from edgekit.inventory import split
from edgekit.phone_device import open_phone
from edgekit.remote import open_agent
from edgekit.transport import Transport
from edgekit.transport.adb import AdbTransport
from edgekit.transport.adb_connect import parse

ADDRESS, ABOUT = "adb://[SERIAL|HOST:PORT]", "a phone or a Linux machine over adb"

TAKES = (*COMMON, "benchmark_model", "delegate")


def connect(address: str, rest: str) -> Device:
    """The device with what measures on it. Raises UsageError or DeviceError."""
    _, options = split(rest, TAKES)
    channel = transport(address, rest)
    try:
        facts = preflight.read(channel, options.folder, options.python)
        if options.benchmark_model:
            return open_phone(channel, options, facts)
        return open_agent(channel, options, facts)
    except BaseException:
        channel.close()
        raise


def transport(address: str, rest: str) -> Transport:
    """The machine, reached. Raises UsageError for an address that is none, DeviceError."""
    channel = AdbTransport(parse(split(rest, TAKES)[0]))
    channel.connect()
    return channel
