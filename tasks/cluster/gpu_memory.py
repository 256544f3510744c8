"""Asks the nodes of a Ray cluster how much memory their GPUs have, which Ray does not know."""

import subprocess

QUERY = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]  # MiB, a line for each GPU
QUERY_TIMEOUT_S = 20.0
UNKNOWN_BYTES = 16 << 30  # taken for a GPU whose memory nobody tells


def min_gpu_memory_here() -> int:
    """Return the bytes of this machine's smallest GPU, or UNKNOWN_BYTES where nvidia-smi does not say.

    Of all its memory, whatever other programs hold; of the whole GPU where it is divided (MIG).
    """
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S, check=True)
        return min(int(line) << 20 for line in done.stdout.split())
    except (OSError, subprocess.SubprocessError, ValueError):
        return UNKNOWN_BYTES


def min_gpu_memory() -> int:
    """Return the bytes of the smallest GPU among the nodes of the connected cluster.

    A node that does not answer counts with UNKNOWN_BYTES.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    ask = ray.remote(num_cpus=0, max_retries=0)(min_gpu_memory_here)
    answers = [
        ask.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU")
    ]
    found = []
    for answer in answers:
        try:
            found.append(ray.get(answer, timeout=2 * QUERY_TIMEOUT_S))
        except ray.exceptions.RayError:  # a node that was just lost, is busy, or joined without this code
            found.append(UNKNOWN_BYTES)
    return min(found, default=UNKNOWN_BYTES)
