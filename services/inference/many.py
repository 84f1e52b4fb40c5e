"""Many users' requests in one message, for jobs: two RPCs a group and not two a user.

    user_key BYTES [1, B]  history_length INT32 [1, B]  history_item, history_action, history_time [1, sum of lengths]
    and to rank: candidate_length INT32 [1, B]  candidate INT32 [1, sum of lengths]

come back as `user_vector` [B, D], or `scores` [1, sum, A] and `scored` [1, sum]; `error` BYTES [1, B] says what was
wrong with one of them, empty where nothing was. Parameters are those of a single request, common to all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from services.inference.wire import Array

LENGTHS = "history_length"
"""The input that tells such a message from a single request."""
KEYS, CANDIDATE_LENGTHS = "user_key", "candidate_length"
MOST_REQUESTS = 256
MOST_ROWS = 131_072
"""History rows, and candidates: 64 users of 2,048 rows are 1.7 MB."""


def parts(rows: Sequence[int], candidates: Sequence[int]) -> Iterator[slice]:
    """Of a list of requests with so many history rows and candidates: slices that each fit into one message."""
    begin = 0
    held = [0, 0]
    for place, sizes in enumerate(zip(rows, candidates, strict=True)):
        if place > begin and (
            place - begin >= MOST_REQUESTS or any(h + s > MOST_ROWS for h, s in zip(held, sizes, strict=True))
        ):
            yield slice(begin, place)
            begin, held = place, [0, 0]
        held = [h + s for h, s in zip(held, sizes, strict=True)]
    if begin < len(rows):
        yield slice(begin, len(rows))


def request_tensors(
    user_keys: Sequence[str], histories: Sequence[Array], candidates: Sequence[Array] | None
) -> list[tuple[str, str, Array]]:
    """(name, datatype, [n]) as `wire.request` takes them; a history is rows of HISTORY_ROW."""
    rows = np.concatenate(histories)
    told = [
        (KEYS, "BYTES", np.array(user_keys, dtype=object)),
        (LENGTHS, "INT32", np.fromiter(map(len, histories), np.int32, len(histories))),
        ("history_item", "INT32", rows["item"]),
        ("history_action", "INT8", rows["action"]),
        ("history_time", "INT64", rows["time"]),
    ]
    if candidates is not None:
        told.append((CANDIDATE_LENGTHS, "INT32", np.fromiter(map(len, candidates), np.int32, len(candidates))))
        told.append(("candidate", "INT32", np.concatenate(candidates)))
    return told
