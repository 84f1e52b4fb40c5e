"""Jobs and chunks in the database: the truth that workers, planner, sweeper and API agree on.

Each function is one transaction's work on a connection, on MySQL and on SQLite; times are those of the database's
clock, so that machines whose clocks differ share leases. Messages, files, Redis and the making of slates are not
known here.
"""
