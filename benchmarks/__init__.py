"""Speed of limbeck on this machine, beside hand-written PyTorch and beside its peers: ``python -m benchmarks``."""
