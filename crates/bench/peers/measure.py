"""What every tool beside ours is asked to do. The answer is one line of JSON."""

import json
import os
import statistics
import subprocess
import time

# By the environment, because workers read this too.
WORKERS, ROUNDS, BATCH, SINGLE = map(int, os.environ["BENCH_SIZES"].split())


def call(value):
    return value


def command(value):
    subprocess.run(["/bin/true"], check=True)


def report(version, run, broadcast=None):
    """`run(function, count)` submits so many as one batch and waits for all results; `broadcast(function)` has every
    worker do it, where the tool knows of such a thing."""
    broadcast = broadcast or (lambda function: run(function, WORKERS))
    for function in call, command:  # Workers are there, and what is loaded once is.
        run(function, 20 * WORKERS)
    rounds = range(ROUNDS)
    print(json.dumps({
        "version": version,
        "function": [BATCH / seconds(lambda: run(call, BATCH)) for _ in rounds],
        "exec": [BATCH / seconds(lambda: run(command, BATCH)) for _ in rounds],
        "one": [median_ms(lambda: run(call, 1)) for _ in rounds],
        "all": [median_ms(lambda: broadcast(command)) for _ in rounds],
    }))


def median_ms(work):
    return 1000 * statistics.median(seconds(work) for _ in range(SINGLE))


def seconds(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
