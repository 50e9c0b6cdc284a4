"""Sockets of discovery: one datagram out of every interface that should carry it, and what arrives.

Used by runtime/discovery.py and finder.py. Loopback counts as an interface, so nodes on one machine
find each other there without a network. A send that fails on one interface fails there alone:
interfaces come and go, and each call looks at them anew. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import array
import asyncio
import errno
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from pydi_node import portable
from pydi_node.discovery.group import WILDCARDS, Group

_log = logging.getLogger("pydi.discovery")

HOPS: Final = 1
DATAGRAMS_PER_TURN_MAX: Final = 64  # then the loop's other work has its turn, whoever floods us
RECEIVE_BYTES: Final = 2048  # a longer datagram arrives cut, and so fails its HMAC

_SIOCGIFCONF: Final = 0x8912
_SIOCGIFFLAGS: Final = 0x8913
_IFREQ: Final = struct.Struct("16s24s")
_INTERFACES_MAX: Final = 256
_IFF_UP: Final = 0x1
_IFF_LOOPBACK: Final = 0x8
_IFF_MULTICAST: Final = 0x1000
_IP_MULTICAST_ALL: Final = 49

Heard = Callable[[bytes, str, int], None]  # datagram, host and port it came from


class Interface(NamedTuple):
    """One address family of one network interface."""

    name: str
    if_index: int  # of the kernel
    address: str
    is_loopback: bool
    is_v6: bool


def interfaces() -> list[Interface]:
    """What can carry a beacon now: up, and able to multicast or loopback. Empty where it can't be
    asked."""
    if sys.platform != "linux":
        return []
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        addresses = [(n, a, False) for n, a in _v4_addresses(asker)]
        addresses += [(n, a, True) for n, a in _v6_addresses()]
        for name, address, is_v6 in addresses:
            try:
                flags = _flags(asker, name)
                index = socket.if_nametoindex(name)
            except OSError:
                continue  # it went away between the questions
            is_loopback = bool(flags & _IFF_LOOPBACK)
            # The kernel has no route for IPv6 multicast on loopback; IPv4 does there.
            if is_v6 and is_loopback:
                continue
            if flags & _IFF_UP and (is_loopback or flags & _IFF_MULTICAST):
                found.append(Interface(name, index, address, is_loopback, is_v6))
    return found


def selected(
    found: Sequence[Interface], listen_host: str, wanted: Sequence[str]
) -> list[Interface]:
    """Those that carry beacons of a process that is served at ``listen_host``.

    wanted  addresses of interfaces that a person chose; none: whatever reaches ``listen_host``,
            which may be a wildcard.
    """
    if listen_host == "0.0.0.0":  # nobody could connect where an IPv6 beacon came from
        found = [i for i in found if not i.is_v6]
    hosts = wanted or [listen_host]
    if any(host in WILDCARDS for host in hosts):
        return list(found)
    names = {i.name for i in found if i.address in hosts}
    if any(_is_loopback(host) for host in hosts):
        names |= {i.name for i in found if i.is_loopback}
    return [i for i in found if i.name in names]


def address_for_others(reached: Sequence[str]) -> str:
    """An address of this machine for machines elsewhere; loopback when there is no network.

    reached  addresses under which some peer reaches it already: the first that will do is taken.
    """
    here = sorted((i.is_v6, i.if_index, i.address) for i in interfaces())
    for text in (*reached, *[address for _, _, address in here]):
        address = ipaddress.ip_address(text.partition("%")[0])
        # A link-local address means another machine on each link.
        if not (address.is_loopback or address.is_link_local):
            return str(address)
    return "127.0.0.1"


class Multicast:
    """Membership in the group on some interfaces, and the way to speak there."""

    def __init__(
        self, group: Group, choose: Callable[[list[Interface]], list[Interface]], heard: Heard
    ) -> None:
        """choose: picks the interfaces to use out of all there are; asked at each ``refresh``."""
        self._group = group
        self._choose = choose
        self._heard = heard
        self._loop = asyncio.get_running_loop()
        self._ears: dict[bool, socket.socket] = {}  # by is_v6; bound to the group
        self._voices: dict[bool, socket.socket] = {}  # bound to a port of their own
        self._joined: set[tuple[bool, int]] = set()  # is_v6, index
        self.interfaces: list[Interface] = []
        self.troubles: dict[str, str] = {}  # by interface: why its last datagram did not leave

    def refresh(self) -> None:
        """Uses the interfaces that there are now. OSError when no socket can be made at all."""
        self.interfaces = [
            i for i in self._choose(interfaces()) if (self._group.v6 if i.is_v6 else self._group.v4)
        ]
        present = {(i.is_v6, i.if_index) for i in self.interfaces}
        self._joined &= present  # the kernel ends the membership of an interface that went away
        for interface in self.interfaces:
            try:
                self._join(interface)
            except OSError as exc:
                self.troubles[interface.name] = exc.strerror or str(exc)

    def send(self, datagram: bytes) -> int:
        """Out of every interface; through how many it left."""
        count = 0
        for interface in self.interfaces:
            try:
                self._send_through(interface, datagram)
            except OSError as exc:
                self.troubles[interface.name] = exc.strerror or str(exc)
            else:
                self.troubles.pop(interface.name, None)
                count += 1
        return count

    def send_to(self, datagram: bytes, host: str, port: int) -> None:
        """To one address, best effort."""
        voice = self._voices.get(":" in host)
        try:
            if voice is not None:
                voice.sendto(datagram, (host, port))
        except OSError as exc:
            _log.debug("no answer to %s: %s", host, exc)

    def close(self) -> None:
        for sock in (*self._ears.values(), *self._voices.values()):
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._ears.clear()
        self._voices.clear()

    def _join(self, interface: Interface) -> None:
        if interface.is_v6 not in self._ears:
            self._open(interface.is_v6)
        key = (interface.is_v6, interface.if_index)
        if key in self._joined:
            return
        ear = self._ears[interface.is_v6]
        try:
            if interface.is_v6:
                group = socket.inet_pton(socket.AF_INET6, self._group.v6)
                request = group + struct.pack("@I", interface.if_index)
                ear.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            else:
                request = _ip_mreqn(self._group.v4, "0.0.0.0", interface.if_index)
                ear.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
        except OSError as exc:
            # Joined before: the interface went down and came back under its number.
            if exc.errno != errno.EADDRINUSE:
                raise
        self._joined.add(key)

    def _open(self, is_v6: bool) -> None:
        family = socket.AF_INET6 if is_v6 else socket.AF_INET
        ear = socket.socket(family, socket.SOCK_DGRAM)
        voice = socket.socket(family, socket.SOCK_DGRAM)
        try:
            # All processes of one machine share the port; each gets every datagram of the group.
            ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_v6:
                for sock in (ear, voice):
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                voice.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, HOPS)
                ear.bind(("::", self._group.port))
                voice.bind(("::", 0))
            else:
                # Only through the interfaces joined by this socket, not by any on this machine.
                ear.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
                voice.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, HOPS)
                ear.bind((self._group.v4, self._group.port))
                voice.bind(("0.0.0.0", 0))
        except BaseException:
            ear.close()
            voice.close()
            raise
        for sock in (ear, voice):
            sock.setblocking(False)
            self._loop.add_reader(sock.fileno(), self._receive, sock)
        self._ears[is_v6], self._voices[is_v6] = ear, voice

    def _send_through(self, interface: Interface, datagram: bytes) -> None:
        voice = self._voices.get(interface.is_v6)
        if voice is None:
            return
        if interface.is_v6:
            voice.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, interface.if_index)
            target: tuple[str | int, ...] = (
                self._group.v6, self._group.port, 0, interface.if_index,
            )  # fmt: skip
        else:
            # Its own address as the source: that is where the receiver will connect to.
            request = _ip_mreqn("0.0.0.0", interface.address, interface.if_index)
            voice.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
            target = (self._group.v4, self._group.port)
        voice.sendto(datagram, target)

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(DATAGRAMS_PER_TURN_MAX):
            try:
                datagram, source = sock.recvfrom(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError as exc:  # an ICMP answer to something that was sent
                _log.debug("discovery's socket: %s", exc)
                continue
            host, port = str(source[0]), int(source[1])
            if len(source) == 4 and source[3] and "%" not in host:
                host = f"{host}%{source[3]}"  # a link-local address means something on its link
            self._heard(datagram, host, port)


def _ip_mreqn(group: str, address: str, index: int) -> bytes:
    return struct.pack("=4s4si", socket.inet_aton(group), socket.inet_aton(address), index)


def _v4_addresses(asker: socket.socket) -> list[tuple[str, str]]:
    """(interface, address) of every IPv4 address here; netdevice(7), SIOCGIFCONF."""
    buffer = array.array("B", bytes(_IFREQ.size * _INTERFACES_MAX))
    pointer, length = buffer.buffer_info()
    answer = portable.fcntl.ioctl(asker, _SIOCGIFCONF, struct.pack("iP", length, pointer))
    used = struct.unpack("iP", answer)[0]
    found = []
    for name, address in _IFREQ.iter_unpack(bytes(buffer[:used])):
        # The second address of an interface may have a label of its own: eth0:1
        text = name.split(b"\0", 1)[0].decode().partition(":")[0]
        found.append((text, socket.inet_ntoa(address[4:8])))
    return found


def _v6_addresses() -> list[tuple[str, str]]:
    """(interface, address) of every IPv6 address here; none where IPv6 is off."""
    try:
        with open("/proc/net/if_inet6") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [
        (row[5], str(ipaddress.IPv6Address(bytes.fromhex(row[0])))) for row in rows if len(row) == 6
    ]


def _flags(asker: socket.socket, name: str) -> int:
    request = struct.pack("16sH22x", name.encode(), 0)
    answer = portable.fcntl.ioctl(asker, _SIOCGIFFLAGS, request)
    return int(struct.unpack("16sH22x", answer)[1])


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
