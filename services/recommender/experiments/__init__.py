"""Experiments: who meets which variant, and what the data of it says.

    assignment     a unit's place in [0, 1) and the ranges on it, bit for bit as GrowthBook's SDK has them
    definitions    what an experiment is: variants, weights, phase, namespace; and how it may change while it runs
    holdouts       units that no experiment may touch
    sticky         what a unit met before, by phase
    enrolment      all of these together: one unit in one experiment, with the reason
    statistics/    from sufficient statistics to intervals, alarms and plans
    interleaving   two rankings in one slate, and whom a click speaks for
    off_policy     what a variant that never ran would have earned
    metrics        what is summed of a unit's events; built in, or a team's own in `metrics.yaml`
    comparison     sums to lifts, intervals and verdicts; `alarms`, `slate_quality` and `conclusion` beside it
    assembly       all of these together: a `report`, which `report_text` writes as JSON and CSV
    analysis/      the sums themselves, in SQL: the one part here that knows a database

Owns the arithmetic and the rules; everything named above but `analysis` is pure (numpy and scipy, no clock, no store).
Owns no events, no exposure log and no page: those call this, never the other way round.
"""
