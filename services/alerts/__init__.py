"""The alert receiver: what Alertmanager posts becomes messages of group robots, DingTalk's and WeCom's.

Owns the vendors' formats, signatures, limits and retries. Which alerts there are, whom they concern and how often they
are repeated is Alertmanager's (infra/alertmanager). It needs no store: it must work when those are what is broken.
"""
