"""What every module may use: mistakes of one line, durable files, settings, command lines, the BLAS on Linux.

Imports no other folder. Start with `errors.py`, then `settings.py`.
"""
