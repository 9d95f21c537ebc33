"""What metrics and spans cost beside the puts they watch: prints both, in microseconds, and the share."""

import tempfile
import time
from pathlib import Path

from nbmf import Memory, samples
from nbmf.serve.metrics import Metrics
from nbmf.serve.watch import Watch

ROUNDS, CALLS = 10, 200


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Memory.open(Path(folder) / "store", embedder=None) as memory:
        times = []
        for i, sample in enumerate(samples.generate(200, seed=3)):
            start = time.perf_counter()
            memory.put(("users", "ann"), f"k{i}", sample.value)
            times.append(time.perf_counter() - start)
        put = sorted(times)[len(times) // 2]
        watch = Watch(memory, Metrics(memory))

        def watched() -> float:
            start = time.perf_counter()
            for _ in range(CALLS):
                with watch.operation("put") as operation:
                    operation.records = 1
            return (time.perf_counter() - start) / CALLS

        cost = min(watched() for _ in range(ROUNDS))
    print(f"put, median {put * 1e6:.0f} µs; watching it {cost * 1e6:.1f} µs, {cost / put:.1%}")


if __name__ == "__main__":
    main()
