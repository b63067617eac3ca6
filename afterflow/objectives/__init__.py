"""From rewards to numbers to descend: advantages, preferences, credit in trees, distillation and losses.

Pure functions of tensors; may import `sampling`.  Read `advantages.py` first, then `losses.py`.
"""
