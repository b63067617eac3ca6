"""A procedural world that needs no weights: prompts, renderer, and a verifier that reads pictures back.

Stands alone on numpy and scipy. Pictures are uint8 (S, S, 3) with S = 32 or 64; records are GenEval's.
"""
