"""Slots and the line in front of them."""

import asyncio

import pytest

from sana_client.gateway.admission import Admission
from sana_client.gateway.refusals import Full, OverLimit

MANY = 100


async def admission(capacity: int = 1, line: int = 3) -> Admission:
    return Admission(capacity, line)


async def waiting(found: Admission, name: str, told: list[int]) -> asyncio.Task[None]:
    task = asyncio.create_task(found.enter(name, MANY, None, told.append))
    await asyncio.sleep(0)
    return task


async def test_the_first_in_line_is_the_first_in() -> None:
    found = await admission()
    await found.enter("a", MANY, 0)
    told: dict[str, list[int]] = {"b": [], "c": []}
    b, c = [await waiting(found, name, told[name]) for name in "bc"]
    found.leave("a")
    await b
    assert not c.done()
    found.leave("b")
    await c
    assert told == {"b": [0], "c": [1, 0]}
    assert (found.active, found.waiting) == (1, 0)


async def test_a_full_server_says_so_in_time_and_how_many_are_ahead() -> None:
    found = await admission()
    await found.enter("a", MANY, 0)
    with pytest.raises(Full, match="all 1 streams are taken, 0 ahead") as refusal:
        await found.enter("b", MANY, 0.01)
    assert refusal.value.ahead == 0
    assert found.waiting == 0


async def test_the_line_is_short() -> None:
    found = await admission(line=1)
    await found.enter("a", MANY, 0)
    b = await waiting(found, "b", [])
    with pytest.raises(Full, match="1 ahead"):
        await found.enter("c", MANY, None)
    b.cancel()


async def test_nobody_overtakes_the_line() -> None:
    found = await admission()
    await found.enter("a", MANY, 0)
    b = await waiting(found, "b", [])
    found.leave("a")
    with pytest.raises(Full):
        await found.enter("c", MANY, 0)
    await b


async def test_who_gives_up_leaves_no_gap() -> None:
    found = await admission()
    await found.enter("a", MANY, 0)
    told: list[int] = []
    b, c = await waiting(found, "b", []), await waiting(found, "c", told)
    b.cancel()
    await asyncio.gather(b, return_exceptions=True)
    assert told == [1, 0]
    found.leave("a")
    await c


async def test_a_place_given_to_somebody_who_just_left_goes_on_to_the_next() -> None:
    found = await admission()
    await found.enter("a", MANY, 0)
    b, c = await waiting(found, "b", []), await waiting(found, "c", [])
    found.leave("a")
    b.cancel()
    await asyncio.gather(b, return_exceptions=True)
    await c
    assert found.active == 1


async def test_a_token_has_a_limit_of_its_own() -> None:
    found = await admission(capacity=5)
    await found.enter("a", 2, 0)
    await found.enter("a", 2, 0)
    with pytest.raises(OverLimit, match="2 streams are open with this token"):
        await found.enter("a", 2, 0)
    await found.enter("b", 2, 0)
    found.leave("a")
    await found.enter("a", 2, 0)


async def test_more_slots_let_the_line_in() -> None:
    found = await admission()
    await found.enter("a", MANY, 0)
    b = await waiting(found, "b", [])
    found.resize(2)
    await b
