"""Names the maker of slates that worker processes use."""

from services.recommender.jobs.online_maker import opened as open_maker

__all__ = ["open_maker"]
