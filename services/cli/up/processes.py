"""nginx, Prometheus and Alertmanager as the supervisor's children."""

from __future__ import annotations

import os
import signal

from services.cli.supervisor import Child, log_of
from services.cli.up.configuration import nginx_command
from services.cli.up.plan import Plan, program

# About 5,000 series of one machine every 10 s are 60 MB a day.
RETENTION = ("15d", "2GB")


def front(plan: Plan) -> list[Child]:
    """nginx finishes what it accepted (QUIT) before the services end."""
    return [_child(plan, "nginx", nginx_command(plan), signal.SIGQUIT)]


def beside(plan: Plan) -> list[Child]:
    prometheus = [
        program("prometheus"),
        f"--config.file={plan.made / 'prometheus' / 'prometheus.yml'}",
        f"--storage.tsdb.path={plan.state / 'prometheus'}",
        f"--storage.tsdb.retention.time={RETENTION[0]}",
        f"--storage.tsdb.retention.size={RETENTION[1]}",
        f"--web.listen-address={plan.prometheus}",
    ]
    alertmanager = [
        program("prometheus-alertmanager"),
        f"--config.file={plan.made / 'alertmanager' / 'alertmanager.yml'}",
        f"--storage.path={plan.state / 'alertmanager'}",
        f"--web.listen-address={plan.alertmanager}",
        "--cluster.listen-address=",
    ]
    return [_child(plan, "prometheus", prometheus), _child(plan, "alertmanager", alertmanager)]


def _child(plan: Plan, name: str, command: list[str], ends_with: signal.Signals = signal.SIGTERM) -> Child:
    log = log_of(plan.logs, name)
    return Child(name, command, dict(os.environ), plan.ready()[name], log, ends_with)
