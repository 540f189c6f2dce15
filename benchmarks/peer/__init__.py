"""The paper's program in PyTorch, and both sides of each comparison.

May import `shared` and the package; start with `torch_model.py`.
"""
