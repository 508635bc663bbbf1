"""What the scripts share: `SCRIPT PORT VERSION` runs every scenario against the broker on that port and names each."""

import asyncio
import inspect
import sys

PORT = int(sys.argv[1])
V5 = sys.argv[2] == "5"
# What does not come within this is missing; it is no measurement.
PATIENCE = 60
# How many messages are sent in a row at each QoS.
MANY = {0: 10_000, 1: 10_000, 2: 2_000}


def same(seen, expected, what):
    """Ends the script unless what was seen is what was expected."""
    if seen != expected:
        raise AssertionError(f"{what}: {seen!r} instead of {expected!r}")


async def soon(awaitable):
    """Awaits something that must come."""
    return await asyncio.wait_for(awaitable, PATIENCE)


def run(*scenarios):
    """Runs the scenarios one after the other; each has clients with ids and topics of its own."""
    for scenario in scenarios:
        if inspect.iscoroutinefunction(scenario):
            asyncio.run(scenario())
        else:
            scenario()
        print("ok", scenario.__name__, flush=True)
