"""What surrounds a run: files, errors, bounds of options, names that users type, optional libraries, processes.

Imports nothing of afterflow and no torch.  Read `names.py` first.
"""
