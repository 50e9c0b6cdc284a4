"""PyDi's storage node: the virtual tree, the replicated log and the blobs of one machine."""

__version__ = "0.1.0"
