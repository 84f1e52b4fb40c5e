"""The ranker as torch modules: configuration, layers, packed batch, forward pass, checkpoint.

Owns what a score is. Owns no serving (queues, deadlines, caches: `engine`) and no optimisation (`training`), and
imports nothing beyond torch, numpy, safetensors and `shared.errors`, so that it runs in a bare torch environment.
"""
