"""The methods, one paper a file, opened by the paper's algorithm in a few lines.

May import `sampling` and `objectives`; knows no model, no reward and no process.  Read `base.py` first, then
`flow_grpo.py`.
"""
