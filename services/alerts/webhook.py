"""What Alertmanager posts, version 4: https://prometheus.io/docs/alerting/latest/configuration/#webhook_config"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Status = Literal["firing", "resolved"]


class Posted(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # Alertmanager may add fields to version 4


class Alert(Posted):
    status: Status
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: datetime = Field(alias="startsAt")
    fingerprint: str = ""

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "alert without a name")


class Webhook(Posted):
    """One group. `truncated_alerts`: how many more there are than were sent."""

    version: Literal["4"]
    group_key: str = Field(alias="groupKey")
    status: Status
    alerts: tuple[Alert, ...] = Field(min_length=1)
    external_url: str = Field("", alias="externalURL")
    truncated_alerts: int = Field(0, alias="truncatedAlerts")

    @property
    def digest(self) -> str:
        """Equal for a post that is repeated, another once an alert of the group starts, ends or starts again."""
        told = sorted(f"{alert.fingerprint} {alert.status} {alert.starts_at.isoformat()}" for alert in self.alerts)
        return hashlib.sha256("\n".join([self.group_key, *told]).encode()).hexdigest()
