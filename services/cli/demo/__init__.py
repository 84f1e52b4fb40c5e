"""`silkrec demo`: the suite on MovieLens-100K, through its public API and command line as a user would."""
