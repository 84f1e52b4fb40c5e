"""Parts of `benchmarks/batch.py`: the open-loop load on the online path and the bulk worker, each a process of its own."""
