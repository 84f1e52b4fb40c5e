"""What the six dashboards ask, a file each. Every metric in a query is one that the code declares: a test looks."""

from infra.grafana.boards import data, engine, experiments, jobs, overview, retrieval

BOARDS = (overview.BOARD, engine.BOARD, retrieval.BOARD, data.BOARD, jobs.BOARD, experiments.BOARD)
