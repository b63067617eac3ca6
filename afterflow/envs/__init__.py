"""Procedural worlds with exact verifiers: GenEval's rules and the shapes world.

Imports nothing of afterflow and no torch, only numpy, scipy and Pillow.  Read `shapes/world.py` first.
"""
