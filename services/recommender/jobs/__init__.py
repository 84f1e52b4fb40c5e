"""Work for many users at once, outside of requests: slates, re-ranking, prefilling and exports.

`store/` is the truth: jobs and chunks in the database. `work` is the seam between the durable part (chunks, leases,
outputs) and `bulk/`, which makes slates of many users by the pipeline's own components, at throughput instead of latency.
"""
