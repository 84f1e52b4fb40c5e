"""Private MariaDB, Redis and RabbitMQ processes for tests and benchmarks: own data folders, free ports, no root.

Nothing here touches a server of the machine. Debian's packages put the programs in /usr/sbin and /usr/bin; `./run test`
installs them when they are missing.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kombu
import pymysql
import redis

START_S = 60.0
STOP_S = 20.0
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"))


class Missing(Exception):
    """A program that tests need is not installed."""


def program(*names: str) -> str:
    for name in names:
        found = shutil.which(name, path=_PATH)
        if found:
            return found
    raise Missing(f"{' or '.join(names)} is not installed; `./run test` installs what tests need")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A server process that can be killed and started again on the same data."""

    command: Sequence[str]
    log: Path
    answers: Callable[[], bool]
    environment: Mapping[str, str] | None = None
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_S
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{self.command[0]} did not start:\n{self.log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.05)

    def kill(self) -> None:
        """As a crash would: SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP makes a server hang, SIGCONT lets it go on."""
        assert self.process is not None
        self._signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self.process is None:
            return
        self._signal(number)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait(STOP_S)
        self.process = None

    def _signal(self, number: signal.Signals) -> None:
        """To the whole session: RabbitMQ's node is the child of a script."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass
class MariaDB(Process):
    port: int = 0

    def url(self, schema: str = "silkrec") -> str:
        return f"mysql+pymysql://silkrec:silkrec@127.0.0.1:{self.port}/{schema}"

    def execute(self, *statements: str) -> None:
        with contextlib.closing(_login(self.port)) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def value(self, query: str) -> Any:
        """The first column of the first row."""
        with contextlib.closing(_login(self.port)) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            row = cursor.fetchone()
            return None if row is None else row[0]

    def create_schema(self, schema: str) -> str:
        """An empty schema; returns its URL."""
        self.execute(f"CREATE OR REPLACE DATABASE `{schema}` CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        return self.url(schema)


@dataclass
class RedisServer(Process):
    url: str = ""


@dataclass
class RabbitMQ(Process):
    url: str = ""


@contextlib.contextmanager
def mariadb(folder: Path) -> Iterator[MariaDB]:
    """Listens on 127.0.0.1 with a user silkrec/silkrec that may do everything. `folder` is made."""
    folder.mkdir(parents=True, exist_ok=True)
    data, port = folder / "data", free_port()
    # Its own: a server that starts removes the temporary tables of every other in the same folder.
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    # The server refuses to run as root unless it is told to.
    user = ["--user=root"] if os.geteuid() == 0 else []
    install = [program("mariadb-install-db", "mysql_install_db"), "--no-defaults", f"--datadir={data}", *user]
    install += ["--auth-root-authentication-method=normal", "--skip-test-db"]
    made = subprocess.run(install, capture_output=True, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"mariadb-install-db failed:\n{made.stdout.decode()[-2000:]}{made.stderr.decode()[-2000:]}")
    setup = folder / "setup.sql"
    setup.write_text(
        "CREATE DATABASE silkrec CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;\n"
        "CREATE USER silkrec@'127.0.0.1' IDENTIFIED BY 'silkrec';\n"
        "GRANT ALL ON *.* TO silkrec@'127.0.0.1';\n"
    )
    command = [
        program("mariadbd", "mysqld"), "--no-defaults", *user, f"--datadir={data}", f"--port={port}",
        "--bind-address=127.0.0.1", f"--socket={_socket(folder, 'm')}", f"--pid-file={folder / 'pid'}",
        f"--tmpdir={temporary}", "--skip-name-resolve", "--innodb-buffer-pool-size=128M", "--innodb-log-file-size=64M",
        "--max-connections=200", "--performance-schema=OFF",
    ]  # fmt: skip
    first = [*command, f"--init-file={setup}"]
    server = MariaDB(first, folder / "log", lambda: _answers_sql(port), port=port)
    try:
        server.start()
        server.command = command
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def rabbitmq(folder: Path) -> Iterator[RabbitMQ]:
    """A node of its own name and folders on 127.0.0.1, and its own epmd, so that no other node of the machine is met.

    Not Debian's wrapper in /usr/sbin, which would become the user rabbitmq and read /etc/rabbitmq."""
    script = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if not script.is_file():
        raise Missing("rabbitmq-server is not installed; `./run test` installs what tests need")
    folder.mkdir(parents=True, exist_ok=True)
    port, node_port, epmd_port = free_port(), free_port(), free_port()
    (folder / "rabbitmq.conf").write_text(f"listeners.tcp.1 = 127.0.0.1:{port}\nloopback_users = none\n")
    (folder / "plugins").write_text("[].\n")
    environment = {
        **os.environ,
        "HOME": str(folder),  # where Erlang keeps its cookie
        "ERL_EPMD_PORT": str(epmd_port),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_NODENAME": f"silkrec{port}@localhost",
        "RABBITMQ_DIST_PORT": str(node_port),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "logs"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        # One scheduler: on two cores the node's busy waiting would be what the tests measure.
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
    }
    epmd = Process([program("epmd"), "-port", str(epmd_port)], folder / "epmd.log", lambda: _listens(epmd_port))
    url = f"amqp://guest:guest@127.0.0.1:{port}//"
    server = RabbitMQ([str(script)], folder / "log", lambda: _answers_amqp(url), environment=environment, url=url)
    epmd.start()
    try:
        server.start()
        yield server
    finally:
        server.stop()
        epmd.stop()


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[RedisServer]:
    """On 127.0.0.1, without persistence: what Redis holds may be lost at any time."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        program("redis-server", "valkey-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", "",
        "--appendonly", "no", "--dir", str(folder), "--daemonize", "no",
    ]  # fmt: skip
    url = f"redis://127.0.0.1:{port}/0"
    server = RedisServer(command, folder / "log", lambda: _answers_ping(url), url=url)
    try:
        server.start()
        yield server
    finally:
        server.stop()


def _login(port: int) -> pymysql.Connection:
    return pymysql.connect(host="127.0.0.1", port=port, user="silkrec", password="silkrec", autocommit=True)


def _answers_sql(port: int) -> bool:
    try:
        _login(port).close()
    except pymysql.err.Error:
        return False
    return True


def _answers_ping(url: str) -> bool:
    with contextlib.closing(redis.Redis.from_url(url)) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False


def _answers_amqp(url: str) -> bool:
    with kombu.Connection(url, connect_timeout=2) as connection:
        try:
            connection.connect()
        except (*connection.connection_errors, *connection.channel_errors):
            return False
        return True


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _socket(folder: Path, name: str) -> Path:
    """A socket's path holds 107 bytes at most; pytest's folders are near that."""
    path = folder / name
    return path if len(os.fsencode(path)) < 100 else Path(f"/tmp/silkrec-{os.getpid()}-{free_port()}.sock")
