"""The near door's frames, and door and connection over a real socket with a scripted call behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import cast

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference import frames
from services.inference.frames import BadFrame, Frame, FrameReader
from services.inference.infer_call import InferCall
from services.inference.near import NearConnection, Refused
from services.inference.near_door import NearDoor
from shared.contracts.oip import oip_pb2 as pb
from shared.errors import Overloaded
from shared.observability import context
from shared.observability.context import RequestContext
from tests.inference_process import eventually

frame_lists = st.lists(
    st.builds(Frame, st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 3, 4]), st.binary(max_size=300)), max_size=8
)


@given(sent=frame_lists, cuts=st.lists(st.integers(1, 40), min_size=1))
def test_frames_come_out_whole_and_in_order_however_the_bytes_are_cut(sent: list[Frame], cuts: list[int]) -> None:
    data = frames.HELLO + b"".join(frames.frame(one.call, one.kind, one.payload) for one in sent)
    reader, found, at, turn = FrameReader(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += list(reader.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    assert found == sent
    assert reader.greeted


@pytest.mark.parametrize(
    "data",
    [b"silkrec-near-9\n", b"GET / HTTP/1.1\r\n", frames.HELLO + b"\xff\xff\xff\xff" + bytes(5)],
    ids=["another version", "another protocol", "a frame that no memory should hold"],
)
def test_what_is_not_this_protocol_is_no_frame(data: bytes) -> None:
    with pytest.raises(BadFrame):
        list(FrameReader().feed(data))


def test_an_ask_keeps_its_trace_and_its_message() -> None:
    (found,) = FrameReader().feed(frames.HELLO + frames.ask(7, "id trace", b"message"))
    assert found.call == 7
    assert frames.asked(found.payload) == ("id trace", b"message")


@pytest.mark.parametrize("payload", [b"", b"\x00", b"\x09\x00id"])
def test_an_ask_that_ends_too_early_is_refused(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        frames.asked(payload)


class ScriptedCall:
    """Answers as `script` does."""

    def __init__(self, script: Callable[[pb.ModelInferRequest], Awaitable[pb.ModelInferResponse]]) -> None:
        self.answer = script


async def echo(message: pb.ModelInferRequest) -> pb.ModelInferResponse:
    return pb.ModelInferResponse(id=message.id, model_version=str(context.current_request_id()))


@contextlib.asynccontextmanager
async def joined(
    script: Callable[[pb.ModelInferRequest], Awaitable[pb.ModelInferResponse]], path: Path
) -> AsyncIterator[tuple[NearDoor, NearConnection]]:
    door, connection = NearDoor(cast("InferCall", ScriptedCall(script)), path), NearConnection(path)
    await door.start()
    connection.start()
    try:
        await until(lambda: connection.is_open)
        yield door, connection
    finally:
        await connection.close()
        await door.stop(0.0)


async def until(is_so: Callable[[], bool]) -> None:
    async def check() -> bool:
        return is_so()

    await eventually(check)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "n.sock"


def test_answers_find_their_callers_whatever_order_they_come_in(path: Path) -> None:
    order: list[str] = []

    async def slowest_first(message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        await until(lambda: len(order) == 19 - int(message.id))
        order.append(message.id)
        return await echo(message)

    async def scenario() -> None:
        async with joined(slowest_first, path) as (_, connection):
            asked = [connection.infer(pb.ModelInferRequest(id=str(i))) for i in range(20)]
            answers = await asyncio.gather(*asked)
        assert [answer.id for answer in answers] == [str(i) for i in range(20)]
        assert order == [str(i) for i in reversed(range(20))]

    asyncio.run(scenario())


def test_the_callers_request_id_is_known_behind_the_door(path: Path) -> None:
    async def scenario() -> None:
        async with joined(echo, path) as (_, connection):
            token = context.enter(RequestContext.accept("from-the-front", None))
            answer = await connection.infer(pb.ModelInferRequest(id="1"))
            context.leave(token)
        assert answer.model_version == "from-the-front"

    asyncio.run(scenario())


def test_a_refusal_arrives_with_its_status_and_words(path: Path) -> None:
    async def full(_: pb.ModelInferRequest) -> pb.ModelInferResponse:
        raise Overloaded("no room for this one", retry_after_s=0.05)

    async def scenario() -> None:
        async with joined(full, path) as (_, connection):
            with pytest.raises(Refused) as refused:
                await connection.infer(pb.ModelInferRequest())
        assert refused.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert refused.value.detail == "no room for this one"

    asyncio.run(scenario())


def test_a_caller_that_gives_up_cancels_what_it_asked_and_nothing_else(path: Path) -> None:
    cancelled: list[str] = []
    begun = asyncio.Event()

    async def patient(message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        if message.id == "quick":
            return await echo(message)
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(message.id)
            raise
        return await echo(message)

    async def scenario() -> None:
        async with joined(patient, path) as (_, connection):
            asked = asyncio.create_task(connection.infer(pb.ModelInferRequest(id="slow")))
            await begun.wait()
            asked.cancel()
            await asyncio.wait([asked])
            await until(lambda: cancelled == ["slow"])
            assert (await connection.infer(pb.ModelInferRequest(id="quick"))).id == "quick"

    asyncio.run(scenario())


def test_a_door_that_stops_lets_calls_finish_refuses_new_ones_and_is_found_again(path: Path) -> None:
    release, begun = asyncio.Event(), asyncio.Event()

    async def held(message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        begun.set()
        await release.wait()
        return await echo(message)

    async def scenario() -> None:
        async with joined(held, path) as (door, connection):
            under_way = asyncio.create_task(connection.infer(pb.ModelInferRequest(id="1")))
            await begun.wait()
            stopping = asyncio.create_task(door.stop(5.0))
            await asyncio.sleep(0)
            with pytest.raises(Refused) as refused:
                await connection.infer(pb.ModelInferRequest(id="2"))
            assert refused.value.code is grpc.StatusCode.UNAVAILABLE
            release.set()
            assert (await under_way).id == "1"
            await stopping
            await until(lambda: not connection.is_open)
            again = NearDoor(cast("InferCall", ScriptedCall(echo)), path)
            await again.start()
            try:
                await until(lambda: connection.is_open)
                assert (await connection.infer(pb.ModelInferRequest(id="3"))).id == "3"
            finally:
                await again.stop(0.0)

    asyncio.run(scenario())


def test_a_message_that_cannot_be_read_is_refused_and_the_connection_lives_on(path: Path) -> None:
    async def scenario() -> None:
        async with joined(echo, path) as (_, connection):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(frames.HELLO + frames.ask(1, "", b"\xff\xff") + frames.ask(2, "", b""))
            frame_reader, found = FrameReader(), list[Frame]()
            async with asyncio.timeout(5.0):
                while len(found) < 2:
                    found += list(frame_reader.feed(await reader.read(4096)))
            writer.close()
            await writer.wait_closed()
            kinds = {one.call: one.kind for one in found}
            assert kinds == {1: frames.REFUSAL, 2: frames.ANSWER}
            assert connection.is_open

    asyncio.run(scenario())
