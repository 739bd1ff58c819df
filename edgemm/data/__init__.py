"""Image-text sets: fetched with pinned hashes, rendered, split without leaks, questioned without guesses.

Read one with `edgemm.data.format.read_dataset`; make one with `edgemm data` (verb.py).  No torch anywhere here.
"""
