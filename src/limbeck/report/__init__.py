"""Pages about runs, comparisons and proofs: each one HTML file that opens from disk and needs no network.

Nothing here imports torch: a report can be written where the run's results have been copied to.
"""
