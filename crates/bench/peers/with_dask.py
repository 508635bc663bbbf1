"""Dask distributed: a scheduler in this process, worker processes of one thread each."""

import distributed

from measure import WORKERS, report


def main():
    cluster = distributed.LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(WORKERS)

        def run(function, count):
            # Not pure: the same input twice is work twice.
            client.gather(client.map(function, range(count), pure=False))

        report(distributed.__version__, run, lambda function: client.run(function, 0))


# Workers import this file.
if __name__ == "__main__":
    main()
