"""PyDi's client side: the mount and the command line over the nodes' protocol."""
