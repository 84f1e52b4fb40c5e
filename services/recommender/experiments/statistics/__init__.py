"""From sufficient statistics to numbers that may be believed. Pure: numpy and scipy, no clock, no store.

    moments      n, Σx, Σx², Σxy of units: means, proportions, ratios (click-through rate with users as clusters)
    cuped        the same, less what each unit did before it met the experiment
    effects      lift of one variant over the control, relative or absolute, and its variance
    frequentist  Welch's test and interval; one sample
    sequential   intervals that hold at every look
    bayes        chance to win, risk
    guardrails   "not worse by more than the margin"
    multiple     Holm, Benjamini-Hochberg
    srm          did the traffic split as it should; units where none may be
    outliers     winsorising
    quantiles    p50, p95, p99 by a bootstrap over users
    power        power, units needed, effect that can be seen, days

Conventions are those of GrowthBook's engine (`gbstats`) wherever it has the same thing: relative lift first, two-sided
α = 0.05, Welch-Satterthwaite freedom, N* = 5,000, flat prior. Where we differ, the function says so. The first
argument is always the control. Lifts are fractions: 0.05 is +5 %. Owns no data and decides nothing about an experiment.
"""
