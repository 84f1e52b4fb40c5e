"""The client against real server processes that are killed, hang, restart and end, and against scripted ones."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from grpc import aio

from services.inference import wire
from services.inference.client import GrpcInferenceClient
from shared.contracts.history import pack
from shared.contracts.inference import EncodeRequest, Forgotten, NewItem, RankRequest
from shared.contracts.oip import oip_pb2 as pb
from shared.contracts.oip import oip_pb2_grpc
from shared.errors import DeadlineExceeded, InferenceUnavailable, Overloaded, SilkrecError
from shared.storage import keys
from shared.storage.database import Database
from tests.inference_models import TINY
from tests.inference_process import InferenceProcess, eventually, inference_process, promote, settings_of

pytestmark = pytest.mark.integration
HISTORY = pack([1, 2, 3], [1, 2, 1], [100, 200, 300])
BACK_S = 1.5
"""From the moment a restarted server listens again: 0.4 s of back-off, jitter, and the time to connect."""


def ranking(user: str = "u:1", *, deadline_us: int = 2_000_000, count: int = 3) -> RankRequest:
    return RankRequest(user, HISTORY, np.arange(count, dtype=np.int32), 400, deadline_us)


@contextlib.asynccontextmanager
async def client_of(*targets: str) -> AsyncIterator[GrpcInferenceClient]:
    client = GrpcInferenceClient(targets)
    try:
        yield client
    finally:
        await client.close()


async def failing(asked: Awaitable[object], kind: type[SilkrecError]) -> float:
    """Seconds until it failed as it should."""
    begin = time.monotonic()
    with pytest.raises(kind):
        await asked
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def _one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    with inference_process(tmp_path_factory.mktemp("one") / "var") as process:
        yield process


@pytest.fixture(scope="module")
def _two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferenceProcess]:
    with inference_process(tmp_path_factory.mktemp("two") / "var") as process:
        yield process


@pytest.fixture
def server(_one: InferenceProcess) -> InferenceProcess:
    """With model m-1 and ready. It is started again after a test that ended it only: a start costs 4 s of imports."""
    return _ready(_one)


@pytest.fixture
def other(_two: InferenceProcess) -> InferenceProcess:
    """A second `server`."""
    return _ready(_two)


def _ready(process: InferenceProcess) -> InferenceProcess:
    if not process.running:
        process.start()
    return process


def test_a_killed_server_fails_at_once_and_is_found_again_soon_after_its_restart(server: InferenceProcess) -> None:
    async def scenario() -> None:
        async with client_of(server.target) as client:
            before = await client.rank(ranking())
            assert before.scored.all()
            await asyncio.to_thread(server.kill)
            for _ in range(20):
                assert await failing(client.rank(ranking()), InferenceUnavailable) < 0.5
            assert not await client.ready("")
            await asyncio.to_thread(server.start)  # over the socket file that the killed one left
            begin = time.monotonic()

            async def answered() -> bool:
                try:
                    return bool((await client.rank(ranking())).scored.all())
                except InferenceUnavailable:
                    return False

            await eventually(answered)
            assert time.monotonic() - begin < BACK_S
            after = await client.rank(ranking())
            np.testing.assert_allclose(after.scores, before.scores, atol=2e-5)

    asyncio.run(scenario())


def test_requests_under_way_when_the_server_is_killed_fail_and_do_not_hang(server: InferenceProcess) -> None:
    async def scenario() -> None:
        async with client_of(server.target) as client:
            await client.rank(ranking())
            server.send(signal.SIGSTOP)
            asked = [asyncio.create_task(client.rank(ranking(deadline_us=20_000_000))) for _ in range(5)]
            await asyncio.sleep(0)
            begin = time.monotonic()
            await asyncio.to_thread(server.kill)
            for answer in await asyncio.gather(*asked, return_exceptions=True):
                assert isinstance(answer, InferenceUnavailable)
            assert time.monotonic() - begin < 5.0

    asyncio.run(scenario())


def test_a_server_that_hangs_costs_the_deadline_and_not_more(server: InferenceProcess) -> None:
    async def scenario() -> None:
        async with client_of(server.target) as client:
            await client.rank(ranking())
            server.send(signal.SIGSTOP)
            try:
                assert 0.04 < await failing(client.rank(ranking(deadline_us=50_000)), DeadlineExceeded) < 0.5
            finally:
                server.send(signal.SIGCONT)
            assert (await client.rank(ranking())).scored.all()

    asyncio.run(scenario())


def test_a_hanging_server_loses_its_users_to_the_other_until_it_answers(
    server: InferenceProcess, other: InferenceProcess
) -> None:
    async def scenario() -> None:
        async with client_of(server.target, other.target) as client:
            await asyncio.gather(*(client.rank(ranking(f"u:{i}")) for i in range(20)))
            server.send(signal.SIGSTOP)
            try:
                hung = [client.rank(ranking(f"u:{i}", deadline_us=100_000)) for i in range(20)]
                first = await asyncio.gather(*hung, return_exceptions=True)
                assert any(isinstance(answer, DeadlineExceeded) for answer in first)
                again = [client.rank(ranking(f"u:{i}", deadline_us=500_000)) for i in range(20)]
                assert all(answer.scored.all() for answer in await asyncio.gather(*again))
            finally:
                server.send(signal.SIGCONT)

    asyncio.run(scenario())


def test_users_of_a_killed_server_go_to_the_other_without_an_error(
    server: InferenceProcess, other: InferenceProcess
) -> None:
    async def scenario() -> None:
        async with client_of(server.target, other.target) as client:
            await asyncio.gather(*(client.rank(ranking(f"u:{i}")) for i in range(20)))
            await asyncio.to_thread(server.kill)
            for i in range(40):
                assert (await client.rank(ranking(f"u:{i}", deadline_us=1_000_000))).scored.all()

    asyncio.run(scenario())


def test_sigterm_lets_what_runs_end_and_is_over_within_five_seconds(server: InferenceProcess) -> None:
    async def scenario() -> tuple[list[object], float]:
        async with client_of(server.target) as client:
            await client.rank(ranking())
            asked = [asyncio.create_task(client.rank(ranking(f"u:{i}", count=500))) for i in range(20)]
            await asyncio.sleep(0)
            begin = time.monotonic()
            await asyncio.to_thread(server.stop)
            answers = await asyncio.gather(*asked, return_exceptions=True)
            return list(answers), time.monotonic() - begin

    answers, seconds = asyncio.run(scenario())
    assert seconds < 5.0
    assert all(not isinstance(answer, BaseException) or isinstance(answer, SilkrecError) for answer in answers)
    assert not Path(server.target.removeprefix("unix:")).exists()


def test_sigterm_during_a_models_warm_up_is_obeyed_too(tmp_path: Path) -> None:
    with inference_process(tmp_path / "var") as server:
        promote(settings_of(tmp_path / "var"), "m-2")
        begin = time.monotonic()
        server.stop()
        assert time.monotonic() - begin < 5.0


def test_tcp_serves_the_same_and_a_promotion_reaches_a_running_process(tmp_path: Path) -> None:
    with inference_process(tmp_path / "var", tcp=True) as server:

        async def scenario() -> None:
            async with client_of(server.tcp) as client:
                assert (await client.rank(ranking())).model_version == "m-1"
                promote(settings_of(tmp_path / "var"), "m-2", seed=1)

                async def switched() -> bool:
                    return (await client.rank(ranking())).model_version == "m-2"

                await eventually(switched)
                assert await client.ready("m-1")

        asyncio.run(scenario())
        assert httpx.get(server.url + "/ready", trust_env=False).json()["ready"]


def test_a_process_without_a_model_is_up_and_refuses_quickly(tmp_path: Path) -> None:
    with inference_process(tmp_path / "var", config=None) as server:

        async def scenario() -> None:
            async with client_of(server.target) as client:
                await failing(client.rank(ranking()), InferenceUnavailable)
                assert await failing(client.rank(ranking()), InferenceUnavailable) < 0.2
                assert not await client.ready("")
                promote(settings_of(tmp_path / "var"), "m-1")

                async def ready() -> bool:
                    return await client.ready("m-1")

                await eventually(ready)
                assert (await client.rank(ranking())).scored.all()

        asyncio.run(scenario())


Script = Callable[[pb.ModelInferRequest], pb.ModelInferResponse]


@dataclass
class Scripted(oip_pb2_grpc.GRPCInferenceServiceServicer):
    """A server that answers as the test says, and remembers who asked. `refuse`: the status it ends every call with."""

    refuse: grpc.StatusCode | None = None
    answer: Script | None = None
    users: list[str] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: aio.ServicerContext[object, object]
    ) -> pb.ModelInferResponse:
        self.users.append(request.parameters["user_key"].string_param)
        self.metadata.append(dict(context.invocation_metadata() or ()))
        if self.refuse is not None:
            await context.abort(self.refuse, "as the test wishes")
        return (self.answer or scores_for)(request)


def scores_for(request: pb.ModelInferRequest, count: int | None = None) -> pb.ModelInferResponse:
    number = request.inputs[3].shape[1] if count is None else count
    outputs = [
        ("scores", "FP32", np.zeros((1, number, len(TINY.actions)), np.float32)),
        ("scored", "BOOL", np.ones((1, number), np.bool_)),
    ]
    return wire.response("ranker", "m-1", "", outputs, {})


@contextlib.asynccontextmanager
async def scripted(folder: Path, *servers: Scripted) -> AsyncIterator[list[str]]:
    targets = []
    async with contextlib.AsyncExitStack() as stack:
        for number, servicer in enumerate(servers):
            server = aio.server()
            oip_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
            targets.append(f"unix:{folder}/{number}.sock")
            server.add_insecure_port(targets[-1])
            await server.start()
            stack.push_async_callback(server.stop, 0)
        yield targets


USERS = [f"u:{i}" for i in range(200)]


def test_a_user_keeps_to_one_engine_and_users_spread_over_all(tmp_path: Path) -> None:
    servers = [Scripted(), Scripted(), Scripted()]

    async def scenario() -> None:
        async with scripted(tmp_path, *servers) as targets, client_of(*targets) as client:
            for _ in range(2):
                await asyncio.gather(*(client.rank(ranking(user)) for user in USERS))
        async with scripted(tmp_path, *servers) as targets, client_of(*reversed(targets)) as client:
            await asyncio.gather(*(client.rank(ranking(user)) for user in USERS))

    asyncio.run(scenario())
    kept = [set(server.users) for server in servers]
    assert not (kept[0] & kept[1])
    assert not (kept[1] & kept[2])
    assert not (kept[0] & kept[2])
    assert all(len(users) > len(USERS) / 6 for users in kept)


def test_when_one_engine_goes_only_its_own_users_move(tmp_path: Path) -> None:
    servers = [Scripted(), Scripted(), Scripted()]

    async def scenario() -> list[set[str]]:
        async with scripted(tmp_path, *servers) as targets, client_of(*targets) as client:
            await asyncio.gather(*(client.rank(ranking(user)) for user in USERS))
        homes = [set(server.users) for server in servers]
        async with scripted(tmp_path, *servers[:2]) as targets, client_of(*targets) as client:
            await asyncio.gather(*(client.rank(ranking(user)) for user in USERS))
        return homes

    homes = asyncio.run(scenario())
    assert homes[0] <= set(servers[0].users)
    assert homes[1] <= set(servers[1].users)
    assert not set(servers[0].users) & homes[1]


@pytest.mark.parametrize(
    "refusal", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL]
)
def test_a_full_or_failing_engine_spills_to_the_next(tmp_path: Path, refusal: grpc.StatusCode) -> None:
    bad, good = Scripted(refuse=refusal), Scripted()

    async def scenario() -> None:
        async with scripted(tmp_path, bad, good) as targets, client_of(*targets) as client:
            for user in USERS[:20]:
                assert (await client.rank(ranking(user))).scored.all()

    asyncio.run(scenario())
    assert sorted(good.users) == sorted(USERS[:20])


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (grpc.StatusCode.RESOURCE_EXHAUSTED, Overloaded),
        (grpc.StatusCode.UNAVAILABLE, InferenceUnavailable),
        (grpc.StatusCode.NOT_FOUND, InferenceUnavailable),
        (grpc.StatusCode.UNAUTHENTICATED, InferenceUnavailable),
        (grpc.StatusCode.INTERNAL, InferenceUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
    ],
)
def test_each_refusal_has_its_error(tmp_path: Path, refusal: grpc.StatusCode, kind: type[SilkrecError]) -> None:
    async def scenario() -> None:
        async with scripted(tmp_path, Scripted(refuse=refusal)) as targets, client_of(*targets) as client:
            await failing(client.rank(ranking()), kind)

    asyncio.run(scenario())


def without_scores(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    message = scores_for(request)
    del message.outputs[0], message.raw_output_contents[0]
    return message


def cut_short(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    message = scores_for(request)
    message.raw_output_contents[0] = message.raw_output_contents[0][:-1]
    return message


@pytest.mark.parametrize("answer", [without_scores, cut_short, lambda request: scores_for(request, 2)])
def test_an_answer_that_does_not_fit_the_question_is_an_unavailable_service(tmp_path: Path, answer: Script) -> None:
    async def scenario() -> None:
        async with scripted(tmp_path, Scripted(answer=answer)) as targets, client_of(*targets) as client:
            await failing(client.rank(ranking(count=3)), InferenceUnavailable)

    asyncio.run(scenario())


def test_a_key_and_the_request_id_travel_along(tmp_path: Path) -> None:
    from shared.observability import context

    server = Scripted()

    async def scenario() -> None:
        async with scripted(tmp_path, server) as targets:
            client = GrpcInferenceClient(targets, key="sk_server_1")
            token = context.enter(context.RequestContext.accept("request-7", None))
            try:
                await client.rank(ranking())
            finally:
                context.leave(token)
                await client.close()

    asyncio.run(scenario())
    assert server.metadata[0]["authorization"] == "Bearer sk_server_1"
    assert server.metadata[0]["x-request-id"] == "request-7"


def test_nobody_listening_is_unavailable_at_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with client_of(f"unix:{tmp_path}/nobody.sock") as client:
            assert await failing(client.encode(EncodeRequest("u:1", HISTORY, 5_000_000)), InferenceUnavailable) < 1.0
            assert await failing(client.rank(ranking()), InferenceUnavailable) < 0.1

    asyncio.run(scenario())


def test_a_deadline_that_has_passed_asks_nobody(tmp_path: Path) -> None:
    server = Scripted()

    async def scenario() -> None:
        async with scripted(tmp_path, server) as targets, client_of(*targets) as client:
            await failing(client.rank(ranking(deadline_us=0)), DeadlineExceeded)
            await failing(client.rank(ranking(deadline_us=-1)), DeadlineExceeded)

    asyncio.run(scenario())
    assert server.users == []


def test_closing_ends_what_is_under_way_and_refuses_the_rest(server: InferenceProcess) -> None:
    async def scenario() -> None:
        client = GrpcInferenceClient([server.target])
        await client.rank(ranking())
        server.send(signal.SIGSTOP)
        try:
            asked = asyncio.create_task(client.rank(ranking(deadline_us=20_000_000)))
            await asyncio.sleep(0)
            await client.close()
            await failing(asked, InferenceUnavailable)
            await failing(client.rank(ranking()), InferenceUnavailable)
            assert not await client.ready("")
        finally:
            server.send(signal.SIGCONT)

    asyncio.run(scenario())


def test_a_user_is_forgotten_by_every_engine_that_runs_and_those_that_do_not_are_counted(
    server: InferenceProcess, other: InferenceProcess, tmp_path: Path
) -> None:
    async def cached(target: str) -> int:
        async with client_of(target) as client:
            return (await client.rank(ranking("u:gone"))).cached_events

    async def scenario(one: InferenceProcess, two: InferenceProcess) -> None:
        for server in (one, two):
            assert [await cached(server.target), await cached(server.target)] == [0, 3]
        never = f"unix:{tmp_path / 'never.sock'}"
        async with client_of(one.target, two.target, never, "127.0.0.1:1") as client:
            assert await client.forget("u:gone") == Forgotten(confirmed=2, not_running=2)
            assert await client.forget("u:never seen") == Forgotten(confirmed=2, not_running=2)
        assert [await cached(one.target), await cached(two.target)] == [0, 0]
        two.send(signal.SIGSTOP)
        try:
            async with client_of(one.target, two.target) as client:
                await failing(client.forget("u:gone"), InferenceUnavailable)
        finally:
            two.send(signal.SIGCONT)
        assert await cached(one.target) == 0, "the engine that runs forgot all the same"
        await asyncio.to_thread(two.kill)
        async with client_of(one.target, two.target) as client:
            assert await client.forget("u:gone") == Forgotten(confirmed=1, not_running=1)

    asyncio.run(scenario(server, other))


def test_new_items_reach_the_engine_that_is_named_and_bad_ones_are_refused_with_their_place(
    server: InferenceProcess,
) -> None:
    async def scenario() -> None:
        async with client_of(server.target) as client:
            assert client.targets == (server.target,)
            nothing = await client.upsert_items(server.target, [])
            assert (nothing.model_version, nothing.vocabulary) == ("m-1", TINY.vocabulary)
            sent = [NewItem(3, None, (), {}), NewItem(TINY.vocabulary, "A ring", ("tea",), {"weight": 2.5})]
            told = await client.upsert_items(server.target, sent)
            assert told == replace(nothing, known=1, without_tokens=1)
            with pytest.raises(InferenceUnavailable, match=r"INVALID_ARGUMENT: /items/0/item_index"):
                await client.upsert_items(server.target, [NewItem(-1, None, (), {})])
            with pytest.raises(InferenceUnavailable, match=r"INVALID_ARGUMENT: .*twice"):
                await client.upsert_items(server.target, [sent[0], sent[0]])

    asyncio.run(scenario())


def test_a_door_on_tcp_asks_who_forgets_and_who_tells(tmp_path: Path) -> None:
    with inference_process(tmp_path / "var", tcp=True) as server:
        database = settings_of(tmp_path / "var").settings
        opened = Database(database.database_url(), database.database)
        key = keys.create(opened, "server", "back end").text
        opened.close()

        async def scenario() -> None:
            stranger, friend = GrpcInferenceClient([server.tcp]), GrpcInferenceClient([server.tcp], key=key)
            try:

                async def refused() -> bool:
                    try:
                        await stranger.forget("u:1")
                    except InferenceUnavailable as error:
                        return "UNAUTHENTICATED" in error.detail
                    return False

                await eventually(refused)  # keys are read every 2 s
                with pytest.raises(InferenceUnavailable, match="UNAUTHENTICATED"):
                    await stranger.upsert_items(server.tcp, [])
                assert (await friend.forget("u:1")).confirmed == 1
                assert (await friend.upsert_items(server.tcp, [])).model_version == "m-1"
            finally:
                await asyncio.gather(stranger.close(), friend.close())

        asyncio.run(scenario())
