"""Using a model: read words, score pixels and words, draw images, and the layers for one token at a time.

May import `common` to `inputs`, and `weights`. Start with `words.py` for reading, `draw.py` for drawing.
"""
