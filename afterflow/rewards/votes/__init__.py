"""People as a judge: the page that shows pairs of pictures, and the judge that waits for what they say.

Read `judge.py` first.
"""
