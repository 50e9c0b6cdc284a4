"""Requests to the cluster: finding nodes, deadlines, retries, the stream of invalidations.

    client = Client([node_on_this_machine(data_dir)])
    await client.connect()
    attr = await client.call(Lookup(ROOT_INO, b"name"))
    await client.execute(Mkdir(caller, ROOT_INO, b"folder", 0o755))
    await client.close()

Callers: `pydi_fs.vfs` and the command lines. It knows the wire, and nothing of POSIX or FUSE.
"""

from pydi_fs.client.client import DEADLINE_DEFAULT_S, Client, EndpointOf, Seek
from pydi_fs.client.endpoints import Endpoint, TcpEndpoint, UnixEndpoint, node_on_this_machine

__all__ = [
    "DEADLINE_DEFAULT_S",
    "Client",
    "Endpoint",
    "EndpointOf",
    "Seek",
    "TcpEndpoint",
    "UnixEndpoint",
    "node_on_this_machine",
]
