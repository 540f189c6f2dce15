"""What a run would take: counted operations and bytes, and a roofline for a chip.

May import `common` to `evaluation`. Start with `estimate.py`.
"""
