"""Model directories: load and save, the hub, safetensors headers, checkpoints of the authors' program.

May import `common` to `inputs`. Start with `directory.py`.
"""
