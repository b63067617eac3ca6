"""The machine and the person around a run: files that are whole or absent, names that a user types, libraries that may
be missing, processes that a launcher has started.

Imports nothing of afterflow and no torch.  Read `names.py` first.
"""
