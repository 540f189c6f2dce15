"""The model: its shape, its documents and batches, its layers, the whole network and its objective.

May import `common`, `pixels` and `ops`. Start with `network.py`, which reads top down.
"""
