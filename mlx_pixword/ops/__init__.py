"""Operations, each beside its Metal kernel: rotary positions, attention, folding, one token through all layers.

May import `common` and `pixels`. Start with `attention.py`; `dispatch/` chooses between a kernel and its reference.
"""
