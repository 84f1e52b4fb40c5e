"""Users who click by a known model, so that the true effect of whatever served them is known and not estimated.

    users    who asks, when, and what each likes: all of it from a seed
    clicks   the model: examination by position, attraction by taste, tiredness of what looks alike
    tally    what was served to whom: expected and drawn clicks a user
    effect   the true lift between two variants, beside the one that the drawn clicks show

Pure: no clock, no network. `silkrec simulate` sends what comes of it through the real API, marked as simulated. It is a
model of clicks and not of people: it says whether an analysis finds what is there, never whether real users would like
a change.
"""
