"""The pieces of `benchmarks/batching_peers.py`: workloads, an open-loop load, and one way of starting, pausing and
asking each server. The `*_server.py` files run in the peers' own virtual environment (`environment.py`), where they
import torch, numpy, safetensors and this tree's `services.inference.{model,engine}` only."""
