"""Parts of `benchmarks/batch.py`: the open-loop load on the online path, and the job, each in a process of its own."""
