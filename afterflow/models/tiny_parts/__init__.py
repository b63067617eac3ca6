"""A tiny but genuine Stable Diffusion 3 and Wan for the shapes world, made on one CPU core from nothing.

May import what `models` may.  Read `build.py` first.
"""
