"""`silkrec doctor`: what is wrong with a set-up or a running deployment, where, how bad, and what to do about it.

Owns the questions and the bounds; asks the parts by what they tell everybody (/ready, /metrics, INFO, the database), so
it needs no key. It changes nothing, and no part has to be up: what does not answer is a finding.
"""
