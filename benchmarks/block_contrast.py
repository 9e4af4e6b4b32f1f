"""A contrast over a graph with clusters as negatives, and with all nodes: seconds and memory of a step, by its size.

A step is the loss of ready embeddings, forward and backward; the encoder, which both need alike, is not in it. Memory
is the high-water mark of a process of its own (a fork), above what it had with its inputs and libraries loaded.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure import Report, Row, forked, high_water, in_a_bare_process, now
from limbeck.condensation.graphs.contrast import influence, meta_nodes, nearest_edges, negative_part, positive_part

ABOUT = "clusters as negatives against all nodes, a step of the loss by the number of nodes (float32, one thread)"
SIZES, WIDTH, CLUSTERS, NEIGHBOURS, HOPS, TAU = (500, 1000, 2000, 4000, 8000), 10, 10, 3, 2, 0.5
WAYS = ("blocks", "all")
GOAL_TIME, GOAL_MEMORY = 1 / 3, 1 / 5
"""Of blocks beside all nodes at the largest size: what the paper states for whole trainings."""


class Inputs(NamedTuple):
    """What a step is given."""

    embedding: Tensor
    places: Tensor
    weights: Tensor
    clusters: Tensor


def run(*, quick: bool = False) -> Report:
    """Times in turns in this process, memory in a copy of a process for each size and way."""
    sizes = (60, 120) if quick else SIZES
    jobs = [(way, size) for size in sizes for way in WAYS]
    peaks = dict(zip(jobs, in_a_bare_process("benchmarks.block_contrast", jobs), strict=True))
    rows: list[Row] = []
    for size in sizes:
        goals = (GOAL_TIME, GOAL_MEMORY) if size == sizes[-1] else (None, None)
        times, at = _times(size, 2 if quick else 7), f"N = {size}"
        rows += [Row.of(f"{at}: {way}", times[way], "s") for way in WAYS]
        rows.append(Row.ratio(f"{at}: blocks / all", times["blocks"], times["all"], goals[0]))
        rows += [Row(f"{at}: memory, {way}", peaks[way, size], "MiB") for way in WAYS]
        rows.append(Row(f"{at}: memory, blocks / all", peaks["blocks", size] / peaks["all", size], "x", goal=goals[1]))
    note = f"{CLUSTERS} clusters, {NEIGHBOURS} neighbours, {HOPS} hops; processor time, in turns, ratios by round"
    return Report("block_contrast", ABOUT, rows, [note])


def _inputs(nodes: int) -> Inputs:
    embedding = torch.randn(nodes, WIDTH, generator=torch.Generator().manual_seed(nodes))
    places, weights = influence(nearest_edges(embedding, NEIGHBOURS), nodes, HOPS)
    return Inputs(embedding.requires_grad_(), places, weights, embedding.argmax(1) % CLUSTERS)


def _step(inputs: Inputs, way: str) -> None:
    z = inputs.embedding
    z.grad = None
    others = meta_nodes(z, inputs.clusters, CLUSTERS) if way == "blocks" else z
    (positive_part(z, inputs.places, inputs.weights, TAU) + negative_part(others, TAU)).backward()


def _times(nodes: int, rounds: int) -> dict[str, list[float]]:
    inputs = _inputs(nodes)
    times: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds + 1):
        for way in WAYS:
            began = now()
            _step(inputs, way)
            if number:
                times[way].append((now() - began).cpu)
    return times


def _peak(way: str, nodes: int) -> float:
    _step(_inputs(60), way)  # loads what loads late
    inputs = _inputs(nodes)
    before = high_water()
    _step(inputs, way)
    return max(high_water() - before, 1 / 1024)


def main(jobs: str) -> None:
    """What the process that measures memory does: a fork for each job, whose peak it prints as MiB."""
    torch.set_num_threads(1)
    print(json.dumps([forked(partial(_peak, way, nodes)) for way, nodes in json.loads(jobs)]))


if __name__ == "__main__":
    main(*sys.argv[1:])
