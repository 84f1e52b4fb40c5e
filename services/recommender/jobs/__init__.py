"""Work for many users at once, outside of requests: slates, re-ranking, prefilling and exports.

`store/` is the truth: jobs and chunks in the database. `working` carries chunks out in worker processes that Celery
wakes; `app` is the process beside them (sweeper, schedules, webhook, purge). `work` is the seam between all this and
`bulk/`, which makes slates of many users by the pipeline's own components, at throughput instead of latency.
"""
