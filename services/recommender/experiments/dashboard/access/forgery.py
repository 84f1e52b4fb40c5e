"""Against forged forms: a token bound to the session, and an Origin that is ours.

Either would do in a present browser; together they also hold where a proxy strips a header or a subdomain sets cookies.
"""

from __future__ import annotations

import hmac
from urllib.parse import urlsplit

from fastapi import Request

from services.recommender.experiments.dashboard.access.sessions import Session, signature
from shared.errors import Forbidden

FIELD = "form_token"


class FormRefused(Forbidden):
    code = "form_refused"
    title = "The form was not accepted"


def token_for(session: Session, secret: bytes) -> str:
    """The same for every form of a session. Another name, role or browser has another."""
    return signature(secret, "form", "\n".join((session.way, session.name, session.access, session.nonce)))


def check_token(given: str, session: Session, secret: bytes) -> None:
    """Raises FormRefused."""
    if not (given.isascii() and hmac.compare_digest(given, token_for(session, secret))):
        raise FormRefused("the form is out of date or was not made by this page; go back, reload it and send it again")


def check_origin(request: Request, further: tuple[str, ...]) -> None:
    """`further`: origins of the settings. Raises FormRefused, also when a browser says nothing of where it was."""
    origin = request.headers.get("origin")
    if origin is None and (referer := request.headers.get("referer")):
        split = urlsplit(referer)
        origin = f"{split.scheme}://{split.netloc}"
    if origin is None:
        raise FormRefused("the browser did not say which page the form came from (no Origin header)")
    if origin in further:
        return
    # The scheme is left out: behind TLS termination the browser's is https and ours http.
    if urlsplit(origin).netloc.lower() != request.headers.get("host", "").lower() or not urlsplit(origin).netloc:
        raise FormRefused(
            "the form came from another site; if a proxy changes the host, set recommender.dashboard.origins"
        )
    if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise FormRefused("the browser says that the form came from another site")
