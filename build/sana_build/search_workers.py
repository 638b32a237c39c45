"""The processes of a policy search: each has a judge of its own on its own device."""

import multiprocessing
import os
import signal
import threading
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from sana_build.judge import Finding, Judge, Setting
from sana_build.rollouts import Machine
from sana_quant.calibration import Calibration
from sana_quant.policy import Policy
from sana_quant.search.study import Score

if TYPE_CHECKING:
    from multiprocessing.queues import Queue


class Worker:
    """One device and, from the first question on, its judge: what that refuses reaches the one who asked."""

    def __init__(self, setting: Setting, slot: int) -> None:
        self.setting, self.slot = setting, slot

    @cached_property
    def judge(self) -> Judge:
        best = Machine.best()
        device = f"cuda:{self.slot % devices()}" if best.device == "cuda" else best.device
        return Judge(self.setting, Machine(device, best.dtype))


_workers: dict[int, Worker] = {}
"""The worker of each thread that measures: one of a process, or one of a test that measures in its own."""


def devices() -> int:
    """How many GPUs there are to measure on; without any, the CPU counts as one."""
    return max(torch.cuda.device_count(), 1)


def start(setting: Setting, workers: int) -> Executor:
    """A pool whose tasks are the functions below. A single worker stays in this process and keeps all of its cores."""
    if workers == 1:
        return ThreadPoolExecutor(1, initializer=_sit, initargs=(setting, 0))
    context = multiprocessing.get_context("spawn")
    slots: Queue[int] = context.Queue()
    for slot in range(workers):
        slots.put(slot)
    threads = max(1, len(os.sched_getaffinity(0)) // workers)
    return ProcessPoolExecutor(workers, context, initializer=_start_process, initargs=(setting, slots, threads))


def _start_process(setting: Setting, slots: "Queue[int]", threads: int) -> None:
    # Ctrl-C reaches every process of a terminal, but it is the search that stops its workers; if killed, too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _sit(setting, slots.get())


def _follow_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
    os._exit(1)


def _sit(setting: Setting, slot: int) -> None:
    _workers[threading.get_ident()] = Worker(setting, slot)


def _judge() -> Judge:
    return _workers[threading.get_ident()].judge


def score(policy: Policy) -> tuple[Score, float]:
    """The score, and the seconds it took."""
    judge = _judge()
    started = time.perf_counter()
    return judge.score(policy), time.perf_counter() - started


def inspect(policy: Policy | None) -> tuple[Finding, float]:
    """The finding, and the seconds it took."""
    judge = _judge()
    started = time.perf_counter()
    return judge.inspect(policy), time.perf_counter() - started


def sources() -> np.ndarray:
    return _judge().sources()


def calibration() -> Calibration:
    return _judge().calibration
