"""Import this before anything of mlx_pixword: in a worker that runs PyTorch, PyTorch has to come first.

Otherwise its calls of BLAS go to the OpenBLAS that mlx_pixword loads for MLX, several times slower than its own.
"""

import sys

TORCH_SIDES = ("peer", "peer-compiled", "torch")  # names of the sides that are PyTorch programs

if sys.argv[1:2] == ["worker"] and sys.argv[2] in TORCH_SIDES:
    import torch  # noqa: F401
