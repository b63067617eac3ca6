"""Vision-language models behind a chat server, as rewards and as judges of two images.

May import what `rewards` may.  Read `rewards.py` first.
"""
