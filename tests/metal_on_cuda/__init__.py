"""The Metal kernels' texts on an NVIDIA GPU: rendered as CUDA, compared with the references. README.md says how far."""

from .launch import Unit, cuda_kernel, standing_in, units_of
from .render import RenderError, render_body, render_header

__all__ = ["RenderError", "Unit", "cuda_kernel", "render_body", "render_header", "standing_in", "units_of"]
