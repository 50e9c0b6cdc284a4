"""``pydi shell``, ``edit`` and ``top``: work with a cluster by hand, without a mount.

Called by `pydi_fs.cli`, which loads it only for these commands. `words`, `wildcards` and
`completion` are pure: what a typed line means, given what is there. `console` reads lines and runs
them, `jobs` keeps what goes on in the background, `programs` lends the terminal to other programs.
"""
