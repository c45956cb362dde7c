"""A sweep over a Ray cluster: one task per shard, all writing to one folder that every node sees.

    python experiments/launch/ray_launch.py --shards 8 ippo hallway length=2,3,4,5 memory=none,gru \
        lr=1e-4,3e-4 seeds=64 out=/shared/runs/memory

A task is a process of its own that runs `tad`, so that Ray's Python need not have jax, and a task that
Ray starts again after a node was lost goes on from the last checkpoint.
"""

import argparse
import shlex
import subprocess

import ray


def shard(command: list[str], number: int, count: int) -> tuple[int, str]:
    """Do one share of the programs; the exit code, and the last lines that were said."""
    words = [*command, "--shard", f"{number}/{count}"]
    done = subprocess.run(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, "\n".join(done.stdout.splitlines()[-12:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--cpus", type=float, default=1, help="CPUs of one task")
    parser.add_argument("--gpus", type=float, default=0, help="GPUs of one task")
    parser.add_argument("--address", help="of a running cluster; a local one is started without it")
    parser.add_argument("--tad", default="tad", help="how `tad` is called on the nodes")
    options, words = parser.parse_known_args()

    ray.init(address=options.address)
    task = ray.remote(num_cpus=options.cpus, num_gpus=options.gpus, max_retries=3)(shard)
    command = [*shlex.split(options.tad), "run", *words]
    shards = [task.remote(command, number, options.shards) for number in range(options.shards)]
    failed = 0
    for number, (code, said) in enumerate(ray.get(shards)):
        print(f"--- shard {number}/{options.shards}: exit code {code}\n{said}")
        failed += code != 0
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
