"""Work for many users at once, outside of requests: slates, re-ranking, prefilling and exports.

`work` is the seam between the durable part (jobs, chunks, leases, outputs) and `bulk/`, which makes slates of many
users by the pipeline's own components, at throughput instead of latency.
"""
