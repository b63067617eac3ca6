"""The command line, one file a command.  Nothing but this room prints.

May import every room.  Commands import torch and diffusers only when they need them.  Read `main.py` first.
"""
