"""The REST doors: Open Inference Protocol v2 and what users' deletion needs. Owns JSON shapes, no inference."""
