"""Seats for which clients wait in turn."""

import asyncio

import pytest

from logpipe.limits import FairSeats


class Visits:
    """Who got a seat, in order; each visitor stays until `leave`."""

    def __init__(self, seats: FairSeats) -> None:
        self.order: list[str] = []
        self.seated = 0
        self._seats = seats
        self._leave = asyncio.Semaphore(0)

    async def visit(self, address: str) -> None:
        async with self._seats.seat(address):
            self.order.append(address)
            self.seated += 1
            await self._leave.acquire()
            self.seated -= 1

    async def leave(self) -> None:
        """Lets one visitor leave and the next one in."""
        self._leave.release()
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_client_that_asks_for_many_seats_waits_for_others() -> None:
    visits = Visits(FairSeats(2))
    async with asyncio.TaskGroup() as group:
        for address in [*["10.0.0.1"] * 6, "10.0.0.2", *["10.0.0.3"] * 2]:
            group.create_task(visits.visit(address))
        await asyncio.sleep(0)
        for _ in range(9):
            assert visits.seated <= 2
            await visits.leave()
    ends = [address[-1] for address in visits.order]
    assert "".join(ends) == "111231311"


async def test_networks_of_ipv6_are_one_client() -> None:
    visits = Visits(FairSeats(1))
    async with asyncio.TaskGroup() as group:
        for address in ["2001:db8::1", "2001:db8::2", "2001:db8::3", "10.0.0.1"]:
            group.create_task(visits.visit(address))
        await asyncio.sleep(0)
        for _ in range(4):
            await visits.leave()
    assert visits.order == ["2001:db8::1", "2001:db8::2", "10.0.0.1", "2001:db8::3"]


@pytest.mark.parametrize("given", [False, True])
async def test_no_seat_is_lost_with_a_visitor_that_is_cancelled(given: bool) -> None:
    """While it waits, or in the moment in which it is given a seat."""
    visits = Visits(FairSeats(1))
    first = asyncio.create_task(visits.visit("a"))
    await asyncio.sleep(0)
    second = asyncio.create_task(visits.visit("b"))
    third = asyncio.create_task(visits.visit("c"))
    await asyncio.sleep(0)
    if given:
        first.cancel()
        while not first.done():
            await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    for _ in range(2):
        await visits.leave()
    await third
    assert "c" in visits.order
    async with asyncio.timeout(5):
        last = asyncio.create_task(visits.visit("d"))
        await asyncio.sleep(0)
        await visits.leave()
        await last
    await asyncio.wait([first])


async def test_a_cancelled_visitor_costs_its_client_no_turn() -> None:
    visits = Visits(FairSeats(1))
    addresses = ["10.0.0.9", "10.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.2"]
    tasks = [asyncio.create_task(visits.visit(address)) for address in addresses]
    await asyncio.sleep(0)
    tasks[1].cancel()
    for _ in range(4):
        await visits.leave()
    await asyncio.wait(tasks)
    assert visits.order == ["10.0.0.9", "10.0.0.1", "10.0.0.2", "10.0.0.2"]
