"""Item retrieval from FAISS: choose, build, tune, open, search. Numpy in, numpy out; no torch.

Owns index folders (what is in one, when one may be promoted) and item vectors from behaviour. Does not own the user
vector (inference makes it), nor which hits may be served: hidden and deleted items are left out at build time,
everything that changed since is the pipeline's late eligibility.
"""
