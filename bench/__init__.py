"""The benchmarks of seqkern, shipped as `seqkern.bench` and run by `python -m seqkern bench`.

Protocol (`harness`): everything in one row is measured interleaved in one run, in rotating order,
with a pause before each turn so that no contender pays for another one's spinning threads. Ratios
come from medians of the same run only; the ratio of our own code against itself stands beside
them as the harness's own error.
"""
