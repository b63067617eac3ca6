"""What a run leaves, to be looked at while it trains and after: plain data, a local page, and one file of both.

May import every room but `recipes` and `cli`.  Nothing here writes into a run that trains, and reading needs no torch.
Read `run_reader.py` first.
"""
