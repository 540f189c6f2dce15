"""The choice between a Metal kernel and its reference: load the text, try both on the device, remember the answer.

May import `common`. Start with `choose.py`.
"""
