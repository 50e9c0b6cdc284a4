"""Behind ``scripts/compare``: the same work on PyDi, on its peers and on a plain directory.

work      what is timed: a program of its own that knows nothing but a directory
sources   the archive, repository and wheel that the work unpacks, clones and installs
systems   how a system is started, chilled, hurt and stopped; PyDi and the plain directory
peers     GlusterFS and MooseFS
rounds    who does what when; gives samples
failure   what programs notice when a server is killed
growth    cost and memory of PyDi by number of files, nodes and clients
report    samples to JSON, a table and charts
"""
