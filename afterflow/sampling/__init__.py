"""The path from noise to an image: schedules, kernels, solvers and the sampler of chains and trees.

Pure functions of tensors; may import `envs` and `system`.  Read `kernels.py` first, then `rollout.py`.
"""
