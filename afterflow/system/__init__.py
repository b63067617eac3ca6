"""What surrounds a run: atomic files, errors, names that users type, optional libraries, launched processes.

Imports nothing of afterflow and no torch.  Read `names.py` first.
"""
