"""Every sentence of the pages, by key, in two languages. Templates hold keys only; a test compares the catalogues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import Request

from services.recommender.experiments.dashboard.i18n import en, zh

LANGUAGES: Mapping[str, Mapping[str, str]] = {"en": en.TEXTS, "zh": zh.TEXTS}
NAMES = {"en": "English", "zh": "中文"}
HTML_LANG = {"en": "en", "zh": "zh-Hans"}
DEFAULT = "en"
COOKIE = "silkrec_language"


@dataclass(frozen=True, slots=True)
class Catalogue:
    language: str

    def __call__(self, key: str, /, **facts: str) -> str:
        """The sentence with its facts filled in; not escaped, the template does that. Raises KeyError: a page with a
        hole would be a defect of ours."""
        return LANGUAGES[self.language][key].format_map(facts)

    def known(self, key: str, otherwise: str) -> str:
        """For keys that come from data: codes and metrics that a team added have no sentence here."""
        return LANGUAGES[self.language].get(key, otherwise)


def language_of(request: Request) -> str:
    """`?lang=`, else the cookie, else what the browser prefers."""
    for asked in (request.query_params.get("lang"), request.cookies.get(COOKIE)):
        if asked is not None and asked in LANGUAGES:
            return asked
    return preferred(request.headers.get("accept-language", ""))


def preferred(accept_language: str) -> str:
    """RFC 9110, 12.5.4: the first of the highest quality that we speak."""
    best, best_quality = DEFAULT, 0.0
    for part in accept_language[:500].split(","):
        tag, _, parameters = part.strip().partition(";")
        language = tag.strip().lower().partition("-")[0]
        quality = _quality(parameters)
        if language in LANGUAGES and quality > best_quality:
            best, best_quality = language, quality
    return best


def _quality(parameters: str) -> float:
    name, _, number = parameters.strip().partition("=")
    if name.strip() != "q":
        return 1.0
    try:
        return float(number)
    except ValueError:
        return 0.0
