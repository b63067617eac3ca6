"""Rewards that run in another process or on another machine: the server, its client and their messages.

May import what `rewards` may.  Read `protocol.py` first.
"""
