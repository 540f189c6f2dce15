"""The training run: put together, stepped, saved, resumed, reported, over one process or several.

May import all folders before it. Start with `trainer.py`, which reads top down.
"""
