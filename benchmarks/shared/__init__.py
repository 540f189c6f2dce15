"""What the benchmarks share: records of results, rounds in turn, workloads, short runs.

May import the package; start with `rounds.py`.
"""
