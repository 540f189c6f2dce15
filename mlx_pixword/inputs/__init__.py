"""Words and images to documents: tokenizers, and the processor that joins texts, images and word ids.

May import `common` to `config`. Start with `processor.py`.
"""
