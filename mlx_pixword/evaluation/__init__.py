"""How good a model is: losses on held-out documents, readings and their scores, pages of samples.

May import `common` to `inference`. Start with `readings.py`.
"""
