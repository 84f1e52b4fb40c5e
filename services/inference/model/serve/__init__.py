"""The forward pass that serves: new rows and candidates over latents that earlier passes left behind.

    Step (what is new, where the history lies) -> ServingRanker -> scores, user vectors, and latents in the store

Owns weights as serving wants them, the arithmetic on CPU (`torch_ops`) and on GPU (`triton_ops`, `kernels`). Owns no
cache policy: which page belongs to whom is `engine/latent_cache`'s. Training keeps the modules' own forward, to which
this one is equal within rounding.
"""
