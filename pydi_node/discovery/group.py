"""The multicast group that beacons go to, and how a person names another one. Pure."""

from __future__ import annotations

import ipaddress
from typing import Final, NamedTuple

# Administratively scoped (RFC 2365) and link-local (RFC 4291): no router passes them on.
GROUP_V4: Final = "239.255.74.20"
GROUP_V6: Final = "ff12::7079:6469"
PORT_DEFAULT: Final = 7420  # UDP, beside the nodes' TCP port
WILDCARDS: Final = ("0.0.0.0", "::")  # of a node that is served on every address


class Group(NamedTuple):
    """Where beacons go. ``v4`` or ``v6`` is empty when that family is not used."""

    v4: str
    v6: str
    port: int


GROUP_DEFAULT: Final = Group(GROUP_V4, GROUP_V6, PORT_DEFAULT)


def parse_group(text: str) -> Group:
    """ADDR:PORT, [ADDR]:PORT or ADDR alone. ValueError when that is no multicast group."""
    host, port_text = text, str(PORT_DEFAULT)
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 group is written [ADDRESS]:PORT")
        port_text = rest[1:] or port_text
    elif text.count(":") == 1:
        host, _, port_text = text.partition(":")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError("expected the ADDRESS:PORT of a multicast group") from None
    if not address.is_multicast:
        raise ValueError("not a multicast address (224.0.0.0 to 239.255.255.255, or ff00::)")
    if not (port_text.isascii() and port_text.isdigit() and 1 <= int(port_text) <= 65535):
        raise ValueError("a port is 1 .. 65535")
    port = int(port_text)
    return Group("", host, port) if address.version == 6 else Group(host, "", port)


def parse_interface(text: str) -> str:
    """The address of a network interface, as it is compared. ValueError."""
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("expected an address of one of this machine's interfaces") from None
