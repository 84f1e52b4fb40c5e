"""`probe.py health|ready|warm URL`: exit status 0 when the service there is well. For images, which have no curl.

`warm` is a start-up probe of the inference service: a model serves, or none is promoted, or the promoted one was
refused (waiting brings no other). Standard library only: `python -IS` takes 0.1 s of CPU with it.
"""

import json
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 2.0


def ask(url: str) -> tuple[int, bytes]:
    """(status, body); (0, why) when nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310  (the address is this container's)
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


def is_warm(status: int, body: bytes) -> bool:
    if status == 200:
        return True
    try:
        model = json.loads(body)["dependencies"]["model"]
    except (ValueError, KeyError, TypeError):
        return False
    return model == "no model is promoted yet" or " was refused: " in model


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("health", "ready", "warm"):
        print("usage: probe.py health|ready|warm URL", file=sys.stderr)
        return 2
    what, base = arguments
    status, body = ask(f"{base}/health" if what == "health" else f"{base}/ready")
    well = is_warm(status, body) if what == "warm" else status == 200
    if not well:
        print(f"{what}: {status} {body[:500].decode(errors='replace')}", file=sys.stderr)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
