"""Ray: a node of its own on this machine."""

import ray

from measure import WORKERS, call, command, report

ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
REMOTE = {function: ray.remote(function) for function in (call, command)}


def run(function, count):
    ray.get([REMOTE[function].remote(number) for number in range(count)])


report(ray.__version__, run)
