"""Runs the exact text of a Metal kernel on any machine, under a sanitizer. README.md says how and how far."""

from .build import build, build_many, mistakes
from .errors import CompilerMissing, EmulatorError, Finding, MetalCompileError
from .launch import Argument, Report, floor, launch, traffic
from .trace import Call, Options, metal_kernel, noting_kernel, options, reports, run_traced, trace, using

__all__ = [
    "Argument", "Call", "CompilerMissing", "EmulatorError", "Finding", "MetalCompileError", "Options", "Report",
    "build", "build_many", "floor", "launch", "metal_kernel", "mistakes", "noting_kernel", "options", "reports",
    "run_traced", "trace",
    "traffic", "using",
]  # fmt: skip
