"""The way to the inference service: encode and rank. Owns no deadline; it passes on what remains."""
