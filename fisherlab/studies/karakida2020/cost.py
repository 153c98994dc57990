"""What a step costs: seconds and memory of every variant at the largest width of the study's runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from fisherlab.ntk import VARIANTS
from fisherlab.studies.karakida2020.descent import advance, damping_of
from fisherlab.studies.karakida2020.problem import Net, data
from fisherlab.studies.memory import forget_peak, peak
from fisherlab.studies.study import Part, Tables

TABLE, STEPS = "cost.csv", 5


def part(settings: Mapping[str, Any]) -> Part:
    """Make the part that measures.

    Args:
        settings: The scale's.

    Returns:
        The part.
    """
    return Part("cost", (TABLE,), partial(tables, settings))


def tables(settings: Mapping[str, Any], bar: tqdm[Any]) -> Tables:
    """Take five small steps of every variant, the network's own making included.

    Args:
        settings: The scale's.
        bar: Progress.

    Returns:
        cost.csv: seconds of wall and processor time, and the process's peak memory so far, by variant.
    """
    points = data(settings)
    bar.reset(len(VARIANTS))
    forget_peak()
    rows = []
    for variant in VARIANTS:
        wall, used = time.perf_counter(), time.process_time()
        net = Net("relu", points.x.shape[1], settings["width"], settings["layers"], 0)
        for _ in range(STEPS):
            # So small a rate that no variant diverges: what is measured is the work.
            advance(net, points, variant, damping_of(variant, settings["unit_rho"]), 1e-6)
        took = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - used, "peak_gib": peak()}
        told = {"variant": variant, "width": net.width, "steps": STEPS, "threads": torch.get_num_threads()}
        rows.append(told | took)
        bar.update()
    return {TABLE: pd.DataFrame(rows).round(3)}
