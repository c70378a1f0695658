"""What does the repulsion cost, as it is written and as it is computed? Time, memory, growth and errors.

    python benchmarks/repulsion.py                      # tables, and benchmarks/results/repulsion-<date>.json
    python benchmarks/repulsion.py --rounds 3 --output none

Forward and backward of 4 views of 2000 points at grid 64, float32, one thread. `plain` is all pairs by broadcasting;
`auto` is what training takes, with a bias per point as in the released semantics, and without one, as in ours. Two
processes answer in turns, with glibc's allocator as it is and with a heap that it keeps: by default it maps each large
tensor anew, and the kernel's zeroing of its pages is then most of the plain form's time. Times are CPU seconds, so that
other work on the machine disturbs them little; ratios are medians of plain over auto within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np
import torch
from measuring import peak, provenance, reset_peak, save, summary
from torch import Tensor

from drwr_dist.losses.repulsion import repulsion

VIEWS, POINTS, GRID = 4, 2000, 64
GROWTH = (1, 10, 100, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
HEAP_KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}
ALLOCATORS = {"default": {}, "heap kept": HEAP_KEPT}
NO_BIAS = "auto, no bias"
FORMS = ("plain", "auto", NO_BIAS)


def inputs(points: int, grid: int = GRID, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> list[Tensor]:
    """Return coordinates [V, N, 2], weights and bias [V, N], as a silhouette gives them; `spread` of the frame."""
    generator = torch.Generator().manual_seed(points)
    places = 0.5 + spread * (torch.rand(VIEWS, points, 2, generator=generator, dtype=torch.float64) - 0.5)
    weights = torch.rand(VIEWS, points, generator=generator, dtype=torch.float64).sqrt()
    bias = 3.5 + torch.rand(VIEWS, points, generator=generator, dtype=torch.float64)
    return [tensor.to(dtype).requires_grad_() for tensor in (places * (grid - 1), weights, bias)]


def evaluate(method: str, tensors: list[Tensor], grid: int = GRID) -> tuple[Tensor, ...]:
    """Return the values of all views and the gradients of their sum; without a bias for "auto, no bias"."""
    if method == NO_BIAS:
        tensors = tensors[:2]
    places, weights, bias = (*tensors, None)[:3]
    value = repulsion(places, weights, bias, 5 * grid / 32, grid - 1, method.split(",")[0])
    return (value.detach(), *torch.autograd.grad(value.sum(), tensors))


def seconds(method: str, tensors: list[Tensor]) -> float:
    start = time.process_time()
    evaluate(method, tensors)
    return time.process_time() - start


# --- processes that answer in turns ---------------------------------------------------------------------------


def answer() -> None:
    """Read forms from stdin, one a line; write the CPU seconds of each."""
    torch.set_num_threads(1)
    tensors = inputs(POINTS)
    for line in sys.stdin:
        print(seconds(line.strip(), tensors), flush=True)


def compare(rounds: int) -> dict[str, Any]:
    """Let both allocators run both forms in turns; return CPU milliseconds and ratios."""
    command = [sys.executable, __file__, "--answer"]
    processes = {
        name: subprocess.Popen(
            command, env=os.environ | extra, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, extra in ALLOCATORS.items()
    }
    times: dict[tuple[str, str], list[float]] = {(a, m): [] for a in ALLOCATORS for m in FORMS}
    for turn in range(rounds + 1):
        for (allocator, method), found in times.items():
            process = processes[allocator]
            assert process.stdin and process.stdout
            answers = []
            for _ in range(1 if method == "plain" else 5):
                process.stdin.write(method + "\n")
                process.stdin.flush()
                answers.append(1000 * float(process.stdout.readline()))
            if turn:  # the first one warms up
                found.append(float(np.median(answers)))
    for process in processes.values():
        process.communicate()
    ratios = {
        f"{method}; {a}": np.divide(times[a, "plain"], times[a, method]).tolist()
        for a in ALLOCATORS
        for method in FORMS[1:]
    }
    return {
        "milliseconds": {f"{method}, {allocator}": summary(found) for (allocator, method), found in times.items()},
        "plain / auto": {name: summary(found) for name, found in ratios.items()},
    }


def memory(method: str) -> None:
    """Print how much the resident memory rises above what stands before, in MiB."""
    torch.set_num_threads(1)
    evaluate("auto", inputs(200))  # libraries load what they need
    evaluate("plain", inputs(20))
    tensors = inputs(POINTS)
    before = reset_peak()
    evaluate(method, tensors)
    print((peak() - before) / 2**20)


def compare_memory(times: int = 3) -> dict[str, Any]:
    found = {}
    for method in FORMS:
        command = [sys.executable, __file__, "--memory", method]
        runs = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(times)]
        found[method] = summary(runs)
    return found


# --- growth and errors ----------------------------------------------------------------------------------------


def growth(rounds: int) -> dict[int, dict[str, float]]:
    """Return CPU milliseconds of `auto` by the number of points."""
    prepared = {points: inputs(points) for points in GROWTH}
    found: dict[int, list[float]] = {points: [] for points in GROWTH}
    for turn in range(rounds + 1):
        for points, tensors in prepared.items():
            repeats = max(1, 2000 // points)
            taken = 1000 * sum(seconds("auto", tensors) for _ in range(repeats)) / repeats
            if turn:
                found[points].append(taken)
    return {points: summary(times) for points, times in found.items()}


def error(found: Tensor, exact: Tensor) -> float:
    """Return the largest error over the largest magnitude."""
    return float((found.double() - exact).abs().max() / exact.abs().max())


def errors() -> list[dict[str, Any]]:
    """Compare with the plain form in float64, for points all over the frame and in a cluster."""
    rows = []
    for grid in (32, 64, 128):
        for spread in (1.0, 0.2):
            exact = evaluate("plain", inputs(POINTS, grid, torch.float64, spread), grid)
            for method, dtype in (("plain", torch.float32), ("auto", torch.float32), ("auto", torch.float64)):
                # The same numbers, rounded: rounding the places is an error of the input, not of a form.
                rounded = [t.detach().to(dtype).requires_grad_() for t in inputs(POINTS, grid, torch.float64, spread)]
                if dtype == torch.float32:
                    reference = evaluate("plain", [t.detach().double().requires_grad_() for t in rounded], grid)
                else:
                    reference = exact
                value, by_place, by_weight, by_bias = evaluate(method, rounded, grid)
                rows.append(
                    {
                        "grid": grid, "points": "cluster" if spread < 1 else "all over", "form": method,
                        "dtype": str(dtype).removeprefix("torch."),
                        "value": float(f"{error(value, reference[0]):.1e}"),
                        "gradient by place": float(f"{error(by_place, reference[1]):.1e}"),
                        "gradient by weight": float(f"{error(by_weight, reference[2]):.1e}"),
                        "gradient by bias": float(f"{error(by_bias, reference[3]):.1e}"),
                    }
                )  # fmt: skip
    return rows


def show(results: dict[str, Any]) -> None:
    for name, row in results["speed"]["milliseconds"].items():
        print(f"{name:36} {row['median']:9.1f} ms  ({row['lowest']} … {row['highest']})")
    for name, row in results["speed"]["plain / auto"].items():
        print(f"plain / {name:28} {row['median']:9.1f}     ({row['lowest']} … {row['highest']})")
    for name, row in results["peak memory, MiB"].items():
        print(f"peak memory, {name:11} {row['median']:9.1f} MiB")
    for points, row in results["growth, milliseconds"].items():
        print(f"auto, {points:7} points {row['median']:13.2f} ms  {1e6 * row['median'] / points:10.0f} ns a point")
    for row in results["largest errors"]:
        print(" ".join(f"{name}={value}" for name, value in row.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", default="", help="JSON to write; none: nothing")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.answer:
        return answer()
    if options.memory:
        return memory(options.memory)
    torch.set_num_threads(1)
    results = {
        "about": provenance() | {"setting": f"{VIEWS} views, {POINTS} points, grid {GRID}, float32, 1 thread"},
        "speed": compare(options.rounds),
        "peak memory, MiB": compare_memory(),
        "growth, milliseconds": growth(options.rounds),
        "largest errors": errors(),
    }
    print(json.dumps(results["about"]))
    show(results)
    save("repulsion", results, options.output)


if __name__ == "__main__":
    main()
