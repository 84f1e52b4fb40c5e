"""`silkrec tune batch`: which batch size and queue delay serve most requests in time on this machine.

Owns the trial (a private inference service under open-loop load), the search, what is shown, and writing the best
setting into silkrec.yaml. How batches are formed is the engine's. `open_loop` serves `benchmarks/inference.py` too.
"""
