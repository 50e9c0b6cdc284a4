"""Finding the nodes of a cluster on the local network, without an address: beacons by multicast.

    beacon.py      the datagrams, and what may be believed of one: pure
    multicast.py   sockets on every interface that a beacon should reach
    finder.py      asks for the nodes of one cluster; for whoever has a token and no address

A node's own side (beacons, answers) is runtime/discovery.py. Everything here only hints at where to
look: who belongs to a cluster stands in its tree, and who a node is only TLS proves.
"""
