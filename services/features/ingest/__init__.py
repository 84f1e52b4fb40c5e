"""Events on their way in: checked one by one, committed in groups, then appended to histories in Redis.

`validation` knows the API and no store, `writer` is one transaction's work, `group` the queue and the order of things.
"""
