"""A Ray cluster of two machines with one core each, simulated on this one; lives until its standard input closes."""

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray reads it so; its 15 is a handicap here

from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}

if __name__ == "__main__":
    cluster = Cluster(initialize_head=True, head_node_args=NODE)
    cluster.add_node(num_cpus=1, object_store_memory=NODE["object_store_memory"])
    print(cluster.address, flush=True)
    sys.stdin.read()
    cluster.shutdown()
