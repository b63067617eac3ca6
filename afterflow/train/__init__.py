"""The training loop: exploration, updates, checkpoints and processes.  It knows no algorithm by name.

May import the rooms before it in the README's list, but not `experiment` or what follows.  Read `loop.py` first,
then `explore.py`.
"""
