"""Factories and the schema that services share: database, Redis, artifact folders, the active deployment, API keys.

The tables live here and not in one service, because they are the contract between services: features writes events that
the recommender's reader and the trainer read, the recommender writes slates that the dashboard reads
(infra/decisions/0002-schema-in-shared.md).
"""
