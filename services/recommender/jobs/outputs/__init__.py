"""Where slates go: rows of the database, Redis, Parquet. What is written here is harmless when written twice; what
counts is what the chunk's commit names.
"""
