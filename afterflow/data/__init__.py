"""What is learned from: prompts to explore, and images or clips with prompts.

May import `sampling`, `envs` and `system`.  Read `prompts.py` first.
"""
