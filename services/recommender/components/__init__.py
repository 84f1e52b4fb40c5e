"""What the pipeline's stages are made of: `<What><Stage>`, one idea a file.

Owns the knowledge of collaborators (reader, inference client, Redis, index), handed in by constructor. No component
imports one of a different kind (they share `stored`, `columns`, `matching`, `most_wanted`, `action_codes`), none reads
settings, none decides what happens when it fails: it raises.
"""
