"""Each service's /ready with what it says of its dependencies, its clock, its sockets, and nginx in front."""

from __future__ import annotations

import contextlib
import email.utils
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from services.cli.doctor.database import skew
from services.cli.doctor.deployment import Deployment
from services.cli.doctor.finding import Finding, Verdict
from services.inference.frames import socket_beside
from shared.settings.roots import Settings

# A header's Date has whole seconds.
DATE_IS_ROUGH_S = 1.5
# What /ready says of parts that are as they should be, though not "ok".
_WELL = ("ok", "not needed", "none promoted yet", "no model is promoted yet", "none", "not in use")


def examine(http: httpx.Client, deployment: Deployment, settings: Settings) -> Iterator[Finding]:
    for name, url in deployment.services.items():
        yield from service(http, name, url, expected=deployment.supervised)
    yield from inference_door(settings, expected=deployment.supervised)
    if deployment.nginx:
        yield nginx(http, deployment.nginx)


def service(http: httpx.Client, name: str, url: str, *, expected: bool) -> Iterator[Finding]:
    """`expected`: a supervisor here keeps it running, so that it is away is no choice."""
    try:
        answer = http.get(f"{url}/ready")
        told = answer.json()
        ready, dependencies = bool(told["ready"]), dict(told["dependencies"])
    except httpx.TimeoutException:
        mend = f"its log (var/log/{name}.log) says what it does; the supervisor kills it after three failed looks"
        yield Finding(name, "fail", "takes the connection and says nothing: it hangs or is stopped", mend, url)
        return
    except httpx.HTTPError:
        found = "nothing answers"
        mend = f"see var/log/{name}.log" if expected else f"`silkrec serve {name}`, or `serve all`"
        yield Finding(name, "fail" if expected else "warn", found, mend, url)
        return
    except (ValueError, KeyError, TypeError):
        mend = f"set SILKREC_{name.upper()}__PORT to a free port"
        yield Finding(name, "fail", "another program answers there", mend, url)
        return
    yield readiness(name, url, dependencies, ready=ready)
    with contextlib.suppress(KeyError, TypeError, ValueError):
        clock = skew(f"{name} clock", _skew(answer), url)
        if clock.verdict != "ok":
            yield clock


def readiness(name: str, url: str, dependencies: Mapping[str, Any], *, ready: bool) -> Finding:
    wrong = {key: str(text) for key, text in dependencies.items() if not str(text).startswith(_WELL)}
    details = "; ".join(f"{key}: {text}" for key, text in wrong.items())
    no_model = not ready and not wrong
    # Without a promoted model the engine is not ready, and nobody waits for it.
    verdict: Verdict = "warn" if wrong or no_model else "ok"
    if not ready and wrong:
        verdict = "fail"
    if any("restart the process" in text for text in wrong.values()):
        verdict = "fail"
    mend = ""
    if verdict != "ok":
        mend = f"restart `silkrec serve {name}`" if "restart the process" in details else "mend what it names, above"
    if no_model:
        details = "; ".join(f"{key}: {text}" for key, text in dependencies.items() if text != "ok")
        mend = "`silkrec train`, then `silkrec releases promote`"
    return Finding(name, verdict, f"{'ready' if ready else 'not ready'}{f' ({details})' if details else ''}", mend, url)


def _skew(answer: httpx.Response) -> float:
    """Seconds that its clock is ahead beyond what a header can show. Raises KeyError, TypeError, ValueError."""
    told = email.utils.parsedate_to_datetime(answer.headers["date"]).timestamp() + 0.5
    difference = told - (time.time() - answer.elapsed.total_seconds() / 2)
    return 0.0 if abs(difference) < DATE_IS_ROUGH_S else difference


def inference_door(settings: Settings, *, expected: bool) -> Iterator[Finding]:
    """Both sockets that a recommender beside an engine uses."""
    for target in settings.inference_targets():
        if not target.startswith("unix:"):
            continue
        path = target.removeprefix("unix:")
        for name, place in (("inference socket", path), ("near socket", str(socket_beside(Path(path))))):
            if _listens(place):
                yield Finding(name, "ok", "answers", "", place)
            else:
                mend = "`silkrec serve inference`; recommender.inference_targets names where engines listen"
                yield Finding(name, "fail" if expected else "warn", "nobody listens", mend, place)


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2.0)
        try:
            probe.connect(path)
        except OSError:
            return False
        return True


def nginx(http: httpx.Client, url: str) -> Finding:
    try:
        if http.get(f"{url}/nginx-health").status_code != httpx.codes.OK:
            mend = "set --nginx to its address, or SILKREC_NGINX_LISTEN in a file for --nginx-env"
            return Finding("nginx", "fail", "another program answers there", mend, url)
        behind = http.get(f"{url}/ready").status_code
    except httpx.HTTPError as error:
        return Finding("nginx", "fail", f"does not answer: {type(error).__name__}", "see var/log/nginx.log", url)
    if behind in (502, 503, 504):
        mend = "SILKREC_NGINX_RECOMMENDERS must name recommenders that run"
        return Finding("nginx", "fail", f"runs, and reaches no recommender ({behind})", mend, url)
    return Finding("nginx", "ok", "answers, and reaches a recommender", "", url)
