"""The training loop: exploration, updates, checkpoints and processes.  It knows no algorithm by name.

May import every room above it in the README's list, no experiment.  Read `loop.py` first, then `explore.py`.
"""
