"""The experiments behind docs/evidence.md: arms, runs, analysis, pages. They import the package, never the reverse.

Start with `arms.py` (what is compared), then `manifest.py` (which runs), `runner.py`, `verdicts.py`.
"""
