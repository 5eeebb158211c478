"""``mac+ssh://me@mac.local?unit=CPU_AND_NE``: a Mac with Remote Login, Core ML files through coremltools there.

Host, user, port, keys and jump hosts may come from the user's ssh configuration: ``mac+ssh://ALIAS``.
"""

from edgekit.device import Device
from edgekit.inventory import split
from edgekit.mac import TAKES, open_mac
from edgekit.transport.ssh import SshTransport
from edgekit.transport.ssh_connect import parse

ADDRESS, ABOUT = "mac+ssh://[USER@]HOST[:PORT]", "a Mac with Remote Login, for Core ML files"


def connect(address: str, rest: str) -> Device:
    """The Mac with the agent on it. Raises UsageError or DeviceError."""
    place, options = split(rest, TAKES)
    channel = SshTransport(parse(place))
    try:
        channel.connect()
        return open_mac(address, channel, options)
    except BaseException:
        channel.close()
        raise
