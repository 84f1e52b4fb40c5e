"""One page view: who looks, in which language, and the answer around a template.

Every answer carries the same strict headers. Plotly needs `style-src 'unsafe-inline'` (it writes style attributes into
its SVG); scripts are ours alone, and none is inline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import Request, Response
from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from services.recommender.experiments.dashboard import assets, i18n
from services.recommender.experiments.dashboard.access import forgery
from services.recommender.experiments.dashboard.access.sessions import Access, Session, Way, new_nonce
from services.recommender.experiments.dashboard.access.sign_in import NONCE_COOKIE, SESSION_COOKIE
from services.recommender.experiments.dashboard.formats import Formats
from services.recommender.experiments.dashboard.i18n import Catalogue

_LANGUAGE_KEPT_S = 365 * 86400
_NONCE_MAX = 64
COOKIE_PATH = "/dashboard"
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    # Not `no-referrer`: with it browsers send `Origin: null` with our own forms.
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

_templates = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


@dataclass(frozen=True, slots=True)
class Visit:
    """`session` None: nobody is signed in. `secret` signs forms."""

    request: Request
    session: Session | None
    secret: bytes = field(repr=False)
    language: str
    t: Catalogue
    f: Formats
    nonce: str
    new_nonce: bool = field(default=False)

    @property
    def bound(self) -> Session:
        """What form tokens are bound to: the session, or this browser before it has one."""
        if self.session is not None and self.session.nonce == self.nonce:
            return self.session
        name, access, way = "", Access.VIEWER, Way.KEY
        if self.session is not None:
            name, access, way = self.session.name, self.session.access, self.session.way
        return Session(name=name, access=access, way=way, nonce=self.nonce)

    def page(
        self, template: str, context: Mapping[str, Any], *, status: int = 200, section: str = "experiments"
    ) -> Response:
        token = forgery.token_for(self.bound, self.secret)
        html = _templates.get_template(template).render(
            t=self.t,
            session=self.session,
            language=self.language,
            languages=i18n.NAMES,
            html_lang=i18n.HTML_LANG[self.language],
            html_langs=i18n.HTML_LANG,
            asset=assets.url,
            section=section,
            token_field=lambda: Markup('<input type="hidden" name="{}" value="{}">').format(forgery.FIELD, token),
            **{"f": self.f, **context},
        )
        return self.finish(HTMLResponse(html, status))

    def finish(self, response: Response) -> Response:
        """Headers and cookies that every answer of the dashboard has."""
        response.headers.update(HEADERS)
        if self.new_nonce:
            response.set_cookie(
                NONCE_COOKIE, self.nonce, path=COOKIE_PATH, httponly=True, samesite="lax", secure=self.is_https
            )
        if self.request.query_params.get("lang") in i18n.LANGUAGES:
            response.set_cookie(
                i18n.COOKIE, self.language, max_age=_LANGUAGE_KEPT_S, path=COOKIE_PATH, httponly=True,
                samesite="lax", secure=self.is_https,
            )  # fmt: skip
        return response

    def remember(self, response: Response, cookie: str, ttl_s: int) -> None:
        response.set_cookie(
            SESSION_COOKIE, cookie, max_age=ttl_s, path=COOKIE_PATH, httponly=True, samesite="lax", secure=self.is_https
        )

    @property
    def is_https(self) -> bool:
        """As the browser sees it: behind TLS termination only its Origin tells."""
        return self.request.url.scheme == "https" or self.request.headers.get("origin", "").startswith("https://")


def visit_of(request: Request, session: Session | None, secret: bytes) -> Visit:
    language = i18n.language_of(request)
    nonce = session.nonce if session is not None and session.nonce else request.cookies.get(NONCE_COOKIE, "")
    fresh = not 0 < len(nonce) <= _NONCE_MAX
    return Visit(
        request=request,
        session=session,
        secret=secret,
        language=language,
        t=Catalogue(language),
        f=Formats(language),
        nonce=new_nonce() if fresh else nonce,
        new_nonce=fresh,
    )
