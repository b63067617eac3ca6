"""A tiny but genuine Stable Diffusion 3 for the shapes world, made on one CPU core from nothing."""
