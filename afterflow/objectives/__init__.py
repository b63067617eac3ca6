"""Turns rewards into advantages and losses; also preferences, credit in trees, and distillation.

Pure functions of tensors; may import `sampling`.  Read `advantages.py` first, then `losses.py`.
"""
