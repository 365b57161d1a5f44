"""One file per scheduling strategy; the entry-point group is `pipeinfer.strategies`.

A strategy's constructor takes its options as keyword arguments and raises ValueError for one out of range. One object
serves one generation.
"""
