"""A procedural world that needs no weights: prompts, a renderer, and a verifier that reads images back.

It needs only numpy and scipy. Images are uint8 (S, S, 3) with S = 32 or 64; records are GenEval's.
"""
