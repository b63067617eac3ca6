"""Post-train the shipped pipeline on this machine, then judge it on prompts it never saw.

python -m afterflow.cli.demo
"""
