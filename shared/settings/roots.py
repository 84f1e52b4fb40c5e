"""The settings tree. Units stand in the names; a default that was measured says so."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, model_validator

from shared.schema import Schema

EMBEDDED = "embedded"
# sockaddr_un.sun_path holds 108 bytes on Linux, NUL included; the near door's name is 5 longer (`inference/frames.py`).
_UNIX_PATH_MAX = 102
_SECRET_MIN_BYTES = 32


class Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class DatabaseSettings(Group):
    url: SecretStr = Field(
        SecretStr(EMBEDDED),
        description="SQLAlchemy URL; `embedded` is SQLite under state_dir; mysql+pymysql://… in production",
    )
    pool_size: int = Field(8, ge=1, le=256)
    connect_timeout_s: float = Field(2.0, gt=0)
    statement_timeout_s: float = Field(10.0, gt=0, description="socket read and write time-out of one statement")


class RedisSettings(Group):
    url: SecretStr = Field(
        SecretStr(EMBEDDED),
        description="redis://, rediss:// or unix://; `embedded` is the server that `serve all` starts",
    )
    read_timeout_ms: int = Field(
        20, ge=1, description="one round trip on the request path; a slow Redis becomes a miss"
    )
    write_timeout_ms: int = Field(250, ge=1)
    max_connections: int = Field(64, ge=1)


class BrokerSettings(Group):
    url: SecretStr = Field(
        SecretStr(EMBEDDED), description="Celery broker; `embedded` is the embedded Redis, database 1"
    )


class ArtifactsSettings(Group):
    url: str = Field("", description="file:///… folder of models and indexes; empty: artifacts/ under state_dir")


class AuthSettings(Group):
    user_token_secret: SecretStr | None = Field(
        None, description="HS256 key with which the back end signs user_token (claim `sub` = user_id)"
    )
    cors_origins: tuple[str, ...] = ()


class HistorySettings(Group):
    max_events: int = Field(2048, ge=16, le=65536, description="rows kept in Redis a user; 2,048 rows are 26.6 KB")
    ttl_s: int = Field(30 * 86400, ge=60)


class DashboardSettings(Group):
    """Pages under /dashboard. The two proxy headers are believed when the socket's peer is in `trusted_proxies`."""

    secret: SecretStr | None = Field(
        None,
        description="signs sessions and forms, 32 bytes or more; the same on every host behind one address. Empty: one "
        "is drawn and kept in dashboard.secret under state_dir",
    )
    session_ttl_s: int = Field(
        4 * 3600, ge=60, le=86400, description="from sign-in, not prolonged; half a working day, as a cookie can leak"
    )
    proxy_user_header: str = Field(
        "", description="names who was signed in by the proxy, such as X-Forwarded-User; empty: no such sign-in"
    )
    proxy_role_header: str = Field(
        "", description="holds viewer or editor; empty: everybody whom the proxy lets through is a viewer"
    )
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (), description="networks (CIDR) of peers whose headers are believed; list the proxy alone, not its clients"
    )
    origins: tuple[str, ...] = Field(
        (),
        description="https://… that browsers show, where a proxy changes the Host header; forms come from there only",
    )

    @model_validator(mode="after")
    def _proxy_is_named(self) -> Self:
        if self.proxy_user_header and not self.trusted_proxies:
            raise ValueError(
                "proxy_user_header without trusted_proxies: nobody's header would be believed; name the proxy's network"
            )
        if self.secret is not None and len(self.secret.get_secret_value().encode()) < _SECRET_MIN_BYTES:
            raise ValueError(f"secret needs at least {_SECRET_MIN_BYTES} bytes")
        return self


class RecommenderSettings(Group):
    host: str = "127.0.0.1"
    port: int = Field(8080, ge=0, le=65535)
    features_url: str = Field(
        "", description="where writing routes are forwarded, so that one URL serves everything; empty: not forwarded"
    )
    inference_targets: tuple[str, ...] = Field((), description="gRPC targets; empty: the Unix socket under state_dir")
    inference_key: SecretStr | None = Field(
        None, description="a server key, for gRPC targets on TCP once keys exist; the Unix socket asks for none"
    )
    deadline_ms: int = Field(68, ge=5, le=1000)
    reserve_ms: float = Field(
        6.0, ge=0, description="kept back for the answer itself: JSON, journal, socket, a busy scheduler"
    )
    candidates: int = Field(500, ge=1, le=5000, description="after the merge")
    per_source: int = Field(200, ge=1, le=5000)
    recent_behaviours: int = Field(12, ge=1, le=200, description="newest history items that item to item starts from")
    popular_half_life_days: float = Field(30.0, gt=0)
    fresh_days: float = Field(14.0, gt=0)
    refresh_s: float = Field(1.0, gt=0, le=5, description="how often catalogue and active release are looked at")
    journal_max_slates: int = Field(100_000, ge=100)
    last_good_ttl_s: int = Field(3600, ge=10)
    max_body_bytes: int = Field(256 * 1024, ge=1024)
    dashboard: DashboardSettings = DashboardSettings()
    analysis_interval_s: float = Field(
        60.0,
        ge=0,
        description="how often results of running experiments are brought up to date; 0: never, run "
        "`silkrec experiments build KEY` instead, on a machine that serves nobody",
    )


class FeaturesSettings(Group):
    host: str = "127.0.0.1"
    port: int = Field(8081, ge=0, le=65535)
    commit_delay_ms: float = Field(2.0, ge=0, description="how long a group commit waits for company")
    commit_max_events: int = Field(2000, ge=1)
    queue_max_events: int = Field(20_000, ge=500, description="beyond it the answer is 503 with Retry-After")
    future_tolerance_s: float = Field(300.0, ge=0, description="occurred_at further ahead is rejected")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1024)
    sweep_interval_s: float = Field(0.5, gt=0)
    event_retention_days: int = Field(730, ge=1)
    slate_retention_days: int = Field(90, ge=1)
    experiment_unit_retention_days: int = Field(
        90, ge=7, description="after an experiment stopped: what each unit did; its results are then as they were"
    )
    experiment_result_retention_days: int = Field(
        1095, ge=7, description="after an experiment stopped: its results and exposures; not less than what units did"
    )
    history: HistorySettings = HistorySettings()

    @model_validator(mode="after")
    def _exposures_outlive_units(self) -> Self:
        if self.experiment_result_retention_days < self.experiment_unit_retention_days:
            raise ValueError(
                "experiment_result_retention_days must not be below experiment_unit_retention_days: exposures say "
                "where a deleted user's rows are"
            )
        return self


class DynamicBatchingSettings(Group):
    enabled: bool = True
    max_batch_size: int = Field(128, ge=1, description="requests")
    preferred_batch_size: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (32, 64), description="with so many waiting, company is no longer waited for; none above max_batch_size"
    )
    max_queue_delay_ms: float = Field(1.0, ge=0, description="how long a request waits for company")
    max_queue_size: int = Field(512, ge=1, description="requests; beyond it unscored at once")
    max_batch_ms: float = Field(
        8.0, gt=0, description="predicted time of a batch: what a request that just missed one may have to wait"
    )
    max_idle_batch_ms: float = Field(
        30.0, gt=0, description="the same for batches of jobs while nobody has asked for a slate for five seconds"
    )
    job_share: float = Field(
        0.5,
        gt=0,
        le=1,
        description="of the engine's time that jobs take at most while somebody has; 1: all that is left",
    )

    @model_validator(mode="after")
    def _preferred_fit(self) -> Self:
        """Defaults give way to a smaller max_batch_size; sizes that somebody wrote down do not."""
        above = [size for size in self.preferred_batch_size if size > self.max_batch_size]
        if above and "preferred_batch_size" in self.model_fields_set:
            raise ValueError(
                f"preferred_batch_size {above[0]} is above max_batch_size {self.max_batch_size}: no batch can have it"
            )
        return self


class LatentCacheSettings(Group):
    enabled: bool = Field(True, description="keep history states between requests")
    device_mb: int = Field(0, ge=0, description="0: 45 % of a GPU's free memory; without one 5 % of all, 1 GiB at most")
    host_mb: int = Field(0, ge=-1, description="pinned tier below a GPU; 0: 10 % of memory, 8 GiB at most; -1: none")
    page_rows: int = Field(64, ge=8, le=1024, description="history events a page")


class InferenceSettings(Group):
    host: str = "127.0.0.1"
    port: int = Field(8082, ge=0, le=65535, description="REST")
    grpc_port: int = Field(8083, ge=-1, le=65535, description="TCP door beside the Unix socket; -1: closed")
    device: str = "auto"
    precision: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="of weights and latents; refused at the start where the device is slower with it"
    )
    threads: int = Field(0, ge=0, description="torch intra-op threads; 0: half of the usable cores, at least one")
    batch_size: int = Field(
        1,
        ge=1,
        description="requests a batch at most while dynamic_batching is off: those that wait already, none is waited "
        "for; with dynamic_batching on, max_batch_size counts instead",
    )
    max_sequence_length: int = Field(
        2048, ge=8, description="newest history events that the model sees, where its own limit is not lower"
    )
    dynamic_batching: DynamicBatchingSettings = DynamicBatchingSettings()
    cache: LatentCacheSettings = LatentCacheSettings()
    refresh_s: float = Field(1.0, gt=0, le=5)


class ScheduleSettings(Group):
    """A job that starts by itself."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    crontab: str = Field(description="minute hour day_of_month month day_of_week, in UTC: `0 3 * * *`")
    job: dict[str, Any] = Field(description="the body of POST /v1/jobs")


class WebhookSettings(Group):
    url: str = Field("", description="where each change of a job's state is POSTed; empty: nowhere")
    secret: SecretStr | None = Field(None, description="signs the body: X-Silkrec-Signature, HMAC-SHA256")
    timeout_s: float = Field(5.0, gt=0, le=60)
    attempts: int = Field(10, ge=1, le=30, description="10 reach over 17 minutes; then the event is given up and shown")

    @model_validator(mode="after")
    def _may_be_called(self) -> Self:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must start with https:// or http://")
        return self


class JobsSettings(Group):
    host: str = "127.0.0.1"
    port: int = Field(8084, ge=0, le=65535, description="/health, /ready and /metrics of the jobs process")
    concurrency: int = Field(1, ge=1, le=256, description="chunks at a time, each in a worker process of its own")
    nice: int = Field(
        10, ge=0, le=19, description="of worker processes: a tenth of a service's share where both want a core; 0: none"
    )
    chunk_target_s: float = Field(
        4.0, gt=0, le=300, description="how long a chunk should take: half of it is lost when its worker is killed"
    )
    chunk_min_users: int = Field(10, ge=1)
    chunk_max_users: int = Field(
        2000, ge=1, description="one transaction writes them: 2,000 take 60 ms of SQLite's lock"
    )
    chunk_first_users: int = Field(200, ge=1, description="before any chunk was measured")
    lease_s: float = Field(15.0, ge=0.2, description="renewed each third; how long the chunk of a dead worker waits")
    soft_limit_s: float = Field(120.0, gt=0, description="a chunk is told to stop, and comes again in halves")
    hard_limit_s: float = Field(150.0, gt=0, description="its process is killed")
    max_attempts: int = Field(5, ge=1, le=100, description="then the chunk is parked with its reason")
    max_parked_chunks: int = Field(20, ge=1, description="so many parked chunks fail the job at once")
    max_active_jobs: int = Field(100, ge=1, description="beyond it a new job is a 429")
    max_waiting_wakeups: int = Field(32, ge=1, description="messages in the broker's queue, however many chunks wait")
    sweep_interval_s: float = Field(1.0, gt=0, le=60)
    input_dir: Path | None = Field(None, description="files with users must lie below it; none: no job may read files")
    output_dir: Path = Field(Path("jobs"), description="Parquet; below state_dir, or a folder that all workers share")
    batch_slate_ttl_s: int = Field(3 * 86400, ge=60, description="in Redis; a nightly job that fails twice is survived")
    retention_days: int = Field(14, ge=1, description="finished jobs, their slates, files and events")
    schedules: tuple[ScheduleSettings, ...] = ()
    webhook: WebhookSettings = WebhookSettings()

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.soft_limit_s >= self.hard_limit_s:
            raise ValueError("soft_limit_s must be below hard_limit_s")
        if self.chunk_target_s * 2 > self.soft_limit_s:
            raise ValueError("chunk_target_s must be at most half of soft_limit_s: chunks vary")
        if not self.chunk_min_users <= self.chunk_first_users <= self.chunk_max_users:
            raise ValueError("chunk_first_users must lie between chunk_min_users and chunk_max_users")
        names = [schedule.name for schedule in self.schedules]
        if len(set(names)) < len(names):
            raise ValueError("schedules: each needs a name of its own, by which a firing is known")
        return self


class DingTalkSettings(Group):
    """A group robot. Its security setting is the signature (`secret`, SEC…), a keyword or a list of addresses."""

    url: str = "https://oapi.dingtalk.com/robot/send"
    access_token: SecretStr | None = Field(None, description="of the robot's webhook address; empty: not used")
    secret: SecretStr | None = Field(None, description="signs each message; empty: the robot asks for no signature")
    call_all: bool = Field(False, description="a critical alert calls everyone in the group")


class WeComSettings(Group):
    url: str = "https://qyapi.weixin.qq.com/cgi-bin/webhook/send"
    key: SecretStr | None = Field(None, description="of the group robot's webhook address; empty: not used")


class AlertsSettings(Group):
    """`silkrec serve alerts`: from Alertmanager to group robots."""

    host: str = "127.0.0.1"
    port: int = Field(8085, ge=0, le=65535)
    webhook_token: SecretStr | None = Field(
        None, description="bearer token that Alertmanager sends; without one only this machine's loopback is bound"
    )
    runbook_base_url: str = Field(
        "", description="goes before `docs/runbooks/….md` in messages, where these pages can be read; ends with a slash"
    )
    dingtalk: DingTalkSettings = DingTalkSettings()
    wecom: WeComSettings = WeComSettings()


class TracingSettings(Group):
    """OpenTelemetry; off while `otlp_endpoint` is empty."""

    otlp_endpoint: str = Field(
        "", description="http://host:4317 (plain) or https://host:4317 of a collector, OTLP/gRPC"
    )
    sample_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="of requests that come without a trace; one that brings a trace keeps its decision",
    )


class LogSettings(Group):
    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["json", "console"] = "json"


class Settings(Group):
    """Everything a process is told. `home` is the folder of the configuration file; relative paths start there."""

    home: Path = Path()
    state_dir: Path = Field(Path("var"), description="all state that is not in a server of yours")
    database: DatabaseSettings = DatabaseSettings()
    redis: RedisSettings = RedisSettings()
    broker: BrokerSettings = BrokerSettings()
    artifacts: ArtifactsSettings = ArtifactsSettings()
    auth: AuthSettings = AuthSettings()
    recommender: RecommenderSettings = RecommenderSettings()
    features: FeaturesSettings = FeaturesSettings()
    inference: InferenceSettings = InferenceSettings()
    jobs: JobsSettings = JobsSettings()
    alerts: AlertsSettings = AlertsSettings()
    log: LogSettings = LogSettings()
    tracing: TracingSettings = TracingSettings()
    data: Schema = Field(default_factory=Schema, description="scenes, event_types, item_fields, user_fields")

    @model_validator(mode="after")
    def _reserve_fits(self) -> Self:
        if self.recommender.reserve_ms >= self.recommender.deadline_ms:
            raise ValueError("recommender.reserve_ms must be below recommender.deadline_ms")
        return self

    @property
    def state(self) -> Path:
        return (self.home / self.state_dir).resolve()

    def database_url(self) -> str:
        url = self.database.url.get_secret_value()
        return f"sqlite:///{self.state / 'silkrec.db'}" if url == EMBEDDED else url

    def redis_url(self) -> str:
        url = self.redis.url.get_secret_value()
        return f"unix://{self.socket_path('redis')}" if url == EMBEDDED else url

    def broker_url(self) -> str:
        """As kombu writes it: redis://, rediss://, redis+socket:// or amqp://."""
        url = self.broker.url.get_secret_value()
        return f"redis+socket://{self.socket_path('redis')}?virtual_host=1" if url == EMBEDDED else url

    def job_output_dir(self) -> Path:
        return (self.state / self.jobs.output_dir).resolve()

    def job_input_dir(self) -> Path | None:
        return None if self.jobs.input_dir is None else (self.home / self.jobs.input_dir).resolve()

    def artifacts_dir(self) -> Path:
        url = self.artifacts.url
        if not url:
            return self.state / "artifacts"
        return (self.home / url.removeprefix("file://")).resolve()

    def inference_targets(self) -> tuple[str, ...]:
        return self.recommender.inference_targets or (f"unix:{self.socket_path('inference')}",)

    def socket_path(self, name: str) -> Path:
        """`run/<name>.sock` under the state folder, or a private folder in /tmp when that is too long for a socket."""
        path = self.state / "run" / f"{name}.sock"
        if len(os.fsencode(path)) > _UNIX_PATH_MAX:
            digest = hashlib.sha256(os.fsencode(self.state)).hexdigest()[:16]
            path = Path(tempfile.gettempdir()) / f"silkrec-{os.getuid()}-{digest}" / f"{name}.sock"
        return path
