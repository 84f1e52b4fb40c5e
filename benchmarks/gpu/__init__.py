"""Parts of `engine_gpu.py`: shapes and requests, our engine, transformers. Runs in a bare torch environment."""
