"""One run from its configuration to its result.

May import every room but `evaluation`, `recipes` and `cli`.  Read `config.py` first, then `execute.py`.
"""
