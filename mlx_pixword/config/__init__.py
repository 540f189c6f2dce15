"""The settings of a run, each declared once, and the presets.

May import what lies to the left of it: `common` to `model`. Start with `run.py`.
"""
