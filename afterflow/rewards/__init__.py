"""Rewards and judges: what finished images are worth.

Connects afterflow to networks, servers and detectors; may import `sampling`, `envs` and `system`.  Read `base.py`
first, then `jpeg.py`.
"""
