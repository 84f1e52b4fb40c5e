"""The features service: the writing half of the API (events, feedback, items, users) and the reader of what it wrote.

MySQL first, Redis behind it: `ingest` commits and then brings `online` up to date; `items` and `users` are the tables'
own routes; `reader.py` is what other services read in process; `client.py` is how they write over HTTP.
Nothing here ranks.
"""
