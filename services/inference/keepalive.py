"""How often a client asks an idle connection whether it is alive, and how often the server bears that: in one place, as
they must agree.

gRPC's server takes a ping that follows the last one by less than its least interval, 5 minutes unless told, for a
strike, and ends the connection at the third (GOAWAY, ENHANCE_YOUR_CALM, `too_many_pings`). A call resets the count, so
only idle connections are ended: a job's worker between jobs, and gRPC channels beside an open near door. At a ping each
10 s that was every 30 s a connection, and gRPC's client doubles its own interval each time, until a peer that hangs is
noticed after minutes instead of 12 s.

Options are plain strings, and one that gRPC does not know is ignored without a word. They are not always as their
constants are called: GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS is `min_ping_interval_without_data_ms`.

Source: grpc/grpc doc/keepalive.md and include/grpc/impl/channel_arg_names.h.
"""

from __future__ import annotations

from dataclasses import dataclass

Options = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Keepalive:
    """`every_ms`: after so long without a byte a client pings, with or without calls. `timeout_ms`: for the answer.
    `least_ms`: between pings, for the server; half of `every_ms`, since what is sent each 10 s arrives unevenly."""

    every_ms: int = 10_000
    timeout_ms: int = 2_000
    least_ms: int = 5_000

    def client(self) -> Options:
        return (
            ("grpc.keepalive_time_ms", self.every_ms),
            ("grpc.keepalive_timeout_ms", self.timeout_ms),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.max_pings_without_data", 0),  # else pings of an idle connection end after two
        )

    def server(self) -> Options:
        return (
            ("grpc.keepalive_permit_without_calls", 1),  # else pings without calls may come every two hours
            ("grpc.http2.min_ping_interval_without_data_ms", self.least_ms),
        )


KEEPALIVE = Keepalive()
