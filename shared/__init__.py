"""What several services agree on: errors, settings, contracts, storage factories, observability, web plumbing.

Imports no service. `errors` is stdlib only, so that the inference engine runs in a bare torch environment.
"""
