"""What a column is by its name. `draft.py` looks at the content as well."""

from __future__ import annotations

import re
from collections.abc import Sequence

# In order of preference; compared in snake case.
NAMES: dict[str, tuple[str, ...]] = {
    "user_id": (
        "user_id", "userid", "user", "uid", "u_id", "customer_id", "customerid", "customer", "client_id", "account_id",
        "member_id", "reviewer_id", "profile_id", "buyer_id", "person_id", "user_name", "username",
    ),
    "visitor_id": ("visitor_id", "visitorid", "visitor", "anonymous_id", "cookie_id", "device_id"),
    "item_id": (
        "item_id", "itemid", "item", "iid", "i_id", "product_id", "productid", "product", "movie_id", "movieid",
        "movie", "video_id", "videoid", "video", "article_id", "parent_asin", "asin", "sku", "isbn", "book_id",
        "track_id",
        "song_id", "content_id", "listing_id", "restaurant_id", "business_id", "course_id", "game_id", "id",
    ),
    "occurred_at": (
        "occurred_at", "timestamp", "time_stamp", "ts", "time_ms", "event_time", "event_timestamp", "unix_time",
        "unix_review_time", "datetime", "date_time", "time", "created_at", "date", "at", "day",
    ),
    "event_type": (
        "event_type", "eventtype", "event", "event_name", "action_type", "action", "interaction_type", "interaction",
        "behavior_type", "behaviour_type", "behavior", "behaviour", "type", "verb", "kind",
    ),
    "event_value": (
        "event_value", "value", "rating", "stars", "score", "overall", "rate", "watch_time", "play_time",
        "play_time_ms", "duration", "dwell_time", "price", "amount", "revenue", "quantity", "qty", "weight", "count",
    ),
    "session_id": ("session_id", "sessionid", "session", "user_session", "visit_id"),
    "event_id": ("event_id", "eventid", "uuid", "interaction_id", "review_id"),
}  # fmt: skip
ITEM_NAMES: dict[str, tuple[str, ...]] = {
    "title": ("title", "name", "item_name", "product_name", "movie_title", "product_title", "headline"),
    "categories": ("categories", "category", "genres", "genre", "class", "tags", "category_path"),
    "price": ("price", "unit_price", "list_price", "current_price"),
    "currency": ("currency", "currency_code"),
    "item_type": ("item_type", "kind", "content_type"),
    "created_at": ("created_at", "published_at", "release_date", "launch_date", "added_at", "upload_dt", "upload_time"),
    "is_hidden": ("is_hidden", "hidden"),
    "available_from": ("available_from", "valid_from", "start_date"),
    "available_until": ("available_until", "valid_until", "expires_at", "end_date"),
}
RATING_WORDS = ("rating", "stars", "score", "overall", "rate")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_OTHER = re.compile(r"[^a-z0-9]+")


def snake(name: str) -> str:
    """`addToCart`, `Add to cart` and `add-to-cart` alike; `user_id:token` of RecBole's files is `user_id`."""
    plain = _CAMEL.sub("_", name.partition(":")[0].strip()).lower()
    return _OTHER.sub("_", plain).strip("_")


def guess_column(field: str, columns: Sequence[str]) -> str | None:
    """The column that by its name is most likely `field`."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(snake(column), column)
    names = NAMES.get(field) or ITEM_NAMES.get(field, ())
    return next((by_name[name] for name in names if name in by_name), None)
