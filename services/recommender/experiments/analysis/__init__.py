"""The analysis as SQL: from events and exposures to sufficient statistics, day by day.

    scope      which experiment, phase, days, metrics; dialect helpers
    unit_days  what each unit did on a day, from its first exposure on; multi-variant units out
    unit_now   all days of a unit as one row, and the sums over units
    quality    what the slates were like: failures, latency, ILD, novelty, sampled items
    build      which days are due, one transaction a day
    results    aggregates to a Report
    desk       a report or a build by an experiment's key
    export     sufficient statistics to Parquet

Owns the `experiment_*` aggregate tables and no decision: that is `comparison` and `conclusion`, which are pure.
A deleted user's rows lie under (experiment, phase, unit), the key's front; the exposures say which.
"""
