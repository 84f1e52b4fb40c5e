"""Experiments: who meets which variant, and what the data of it says.

    assignment     a unit's place in [0, 1) and the ranges on it, bit for bit as GrowthBook's SDK has them
    definitions    what an experiment is: variants, weights, phase, namespace; and how it may change while it runs
    holdouts       units that no experiment may touch, as an experiment of two variants
    sticky         what a unit met before, by phase
    enrolment      all of these together: one unit in one experiment, with the reason
    settings       what a variant may change of a request
    live           the running experiments as requests read them, by scene
    enrolling      one request in all experiments of its scene
    applying       what shipped settings and variants make of a Query
    measures       diversity and novelty of a served slate
    statistics/    from sufficient statistics to intervals, alarms and plans
    interleaving   two rankings in one slate, and whom a click speaks for
    off_policy     what a variant that never ran would have earned
    metrics        what is summed of a unit's events; built in, or a team's own in `metrics.yaml`
    comparison     sums to lifts, intervals and verdicts; `alarms`, `slate_quality` and `conclusion` beside it
    assembly       all of these together: a `report`, which `report_text` writes as JSON and CSV
    simulator/     users who click by a known model, so that true effects are known
    open_bandit/   a public log as an experiment of two arms

    registry/      impure: the experiments in the database, their audit, shipping, and the follower of requests
    analysis/      impure: the sums, in SQL
    dashboard/     impure: the pages

Owns the arithmetic and the rules; what stands in the first block is pure (numpy and scipy, no clock, no store). Owns no
events and no exposure log: the journal writes those.
"""
