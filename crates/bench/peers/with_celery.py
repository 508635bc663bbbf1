"""Celery: the worker imports this as its app, the measurement runs it. BENCH_REDIS says where its redis-server is."""

import os

import celery

import measure

app = celery.Celery("with_celery", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
TASKS = {function: app.task(name=function.__name__)(function) for function in (measure.call, measure.command)}


def run(function, count):
    # As it comes, a group looks for results every half second: too seldom where one task is measured.
    celery.group(TASKS[function].s(number) for number in range(count))().get(timeout=120, interval=0.005)


if __name__ == "__main__":
    measure.report(celery.__version__, run)
