"""Data to learn from: prompts to explore, and images or clips with captions.

May import `sampling`, `envs` and `system`.  Read `prompts.py` first.
"""
