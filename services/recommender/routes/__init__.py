"""The recommender's HTTP doors.

Owns the shape of requests and answers (`requests`, `answers`), turning one into a `Query` (`queries`), and one module
a route. Does not own how a slate is made (pipeline), kept (journal, serving.frozen) or guarded (serving.slates), nor
writing routes: `forward` passes those on as bytes.
"""
