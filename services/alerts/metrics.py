"""What the receiver counts beside its HTTP requests."""

from __future__ import annotations

from shared.observability.metrics import Metrics

OUTCOMES = ("delivered", "failed", "deferred", "repeated")


class DeliveryMetrics:
    """`outcome`: `deferred` would have been more than the robot takes a minute, `repeated` it had already."""

    def __init__(self, metrics: Metrics, robots: tuple[str, ...]) -> None:
        self.messages = metrics.counter("messages_total", "Messages by what became of them", ["robot", "outcome"])
        self.attempts = metrics.counter("attempts_total", "Calls of a robot", ["robot", "verdict"])
        self.delivery = metrics.histogram("delivery_duration_seconds", "Until a robot took a message", ["robot"])
        for robot in robots:
            for outcome in OUTCOMES:
                self.messages.labels(robot, outcome)  # an increase needs the zero before the first one
