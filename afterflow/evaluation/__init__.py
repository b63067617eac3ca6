"""How good a result is: suites, statistics with intervals, tables and pages.

May import every room but `recipes` and `cli`.  Read `suites.py` first.
"""
