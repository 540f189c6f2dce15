"""Collections of documents, and batches of them: sources, archives, decoding, cache, packing, the loader.

May import `common` to `inputs`; nothing in it computes with the network. Start with `base.py`, then `loader.py`.
"""
