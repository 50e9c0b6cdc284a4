"""Copies between a local folder and the tree: whole or not at all, gone on with, mirrored.

Called by `pydi_fs.commands_copy`. `plan` (pure) decides what has to be copied and how parts of a
copy are called; `upload` and `download` do it. Modes, modification times, symbolic and hard links
and holes are kept; owners are those of the person who copies, as with cp -r. Links are copied,
never followed, so a copy reads and writes nothing outside what was named.
"""
