"""The inference service: one process a device that encodes histories and scores candidates.

Owns the model (`model`), its serving (`engine`, doors) and its training (`training`). Knows no HTTP API of the suite,
no catalogue and no scene: it answers with vectors and probabilities. Others reach it by `client.py` alone.
"""
