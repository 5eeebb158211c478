"""``ssh://pi@raspberrypi.local``: a Linux machine over SSH, through the agent.

Host, user, port, keys and jump hosts may come from the user's ssh configuration: ``ssh://ALIAS``.
"""

from edgekit.device import Device
from edgekit.inventory import split
from edgekit.remote import open_agent
from edgekit.transport import Transport
from edgekit.transport.ssh import SshTransport
from edgekit.transport.ssh_connect import parse

ADDRESS, ABOUT = "ssh://[USER@]HOST[:PORT]", "a Linux machine over SSH, as a Raspberry Pi"


def connect(address: str, rest: str) -> Device:
    """The machine with the agent on it. Raises UsageError or DeviceError."""
    _, options = split(rest)
    channel = transport(address, rest)
    try:
        return open_agent(channel, options)
    except BaseException:
        channel.close()
        raise


def transport(address: str, rest: str) -> Transport:
    """The machine, reached. Raises UsageError for an address that is none, DeviceError."""
    channel = SshTransport(parse(split(rest)[0]))
    try:
        channel.connect()
    except BaseException:
        channel.close()
        raise
    return channel
