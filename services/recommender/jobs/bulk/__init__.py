"""Slates of many users at throughput instead of latency.

Owns how many are under way and what is asked for them together: users' features in one round trip, vectors and scores
in one message to the engine. Owns no pipeline: every slate is made by `services.recommender.pipeline` with the
components of `pipeline_wiring`, so that a job's slate is the online one. Writes nothing: no journal, no exposure, no
last good scores. Knows nothing of jobs, chunks and outputs (`jobs.work` is the seam).
"""
