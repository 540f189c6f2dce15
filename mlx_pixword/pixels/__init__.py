"""Pure functions on pixels: decode an image as a person sees it, fold its colours, order its pixels in windows.

May import `common`. Start with `colors.py`.
"""
