"""n_threads="auto": the control against a simulated machine with a clock of its own."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from llcuda_ffi.engine.thread_control import ThreadControl
from llcuda_ffi.hardware.supply import CpuSupply


class Machine:
    """Cores, other processes that are always busy, and steps whose time follows from both.

    Alone, t threads take 1 / t**0.8 of the time. Where more threads than cores want to run, one thread loses its
    share, and several lose much more: they wait for each other at barriers.
    """

    def __init__(self, cores: int = 2, *, supply: bool = True, seed: int = 1) -> None:
        self.cores, self.busy, self.now = cores, 0, 0.0
        self.random = random.Random(seed)
        self.own = self.idle = 0.0
        self.supply_works = supply
        self.marks = (0.0, 0.0, 0.0)
        self.history: list[tuple[float, int]] = []
        self.control = ThreadControl(cores, lambda n: self.history.append((self.now, n)), lambda: self.now, self)

    def available(self) -> float | None:
        wall, own, idle = (now - then for now, then in zip((self.now, self.own, self.idle), self.marks, strict=True))
        self.restart()
        return (own + idle) / wall if self.supply_works and wall > 0 else None

    def restart(self) -> None:
        self.marks = (self.now, self.own, self.idle)

    def seconds(self, threads: int, n_tokens: int = 1) -> float:
        """The time of a step; with others beside it, stalls come and go."""
        alone = 0.006 * n_tokens**0.8 / threads**0.8
        over = (threads + self.busy) / self.cores
        if over <= 1:
            return alone * self.random.uniform(0.97, 1.05)
        if threads == 1:
            return alone * over * self.random.uniform(0.9, 1.2)
        return alone * over * self.random.choice([1.0, 3.0, 4.0, 6.0])

    def step(self, n_tokens: int = 1) -> float:
        self.control.begin()
        threads = self.control.n_threads
        took = self.seconds(threads, n_tokens)
        self.spend(took, threads)
        self.control.observe(n_tokens, took)
        return took

    def spend(self, took: float, threads: int) -> None:
        share = min(1.0, self.cores / max(1, threads + self.busy))
        self.now += took
        self.own += took * threads * share
        self.idle += took * max(0.0, self.cores - threads - self.busy)

    def run(self, seconds: float, n_tokens: Callable[[], int] = lambda: 1) -> float:
        """Tokens per second over some time."""
        end, start, made = self.now + seconds, self.now, 0
        while self.now < end:
            n = n_tokens()
            self.step(n)
            made += n
        return made / (self.now - start)

    def fixed(self, threads: int, n_tokens: int = 1) -> float:
        """Tokens per second with a fixed count, under the load of this moment."""
        times = [self.seconds(threads, n_tokens) for _ in range(400)]
        return n_tokens * len(times) / sum(times)


@pytest.mark.parametrize("n_tokens", [1, 32])
@pytest.mark.parametrize("cores", [2, 4, 16])
def test_an_idle_machine_keeps_all_threads(cores: int, n_tokens: int) -> None:
    """Nothing is changed, or hardly ever, while nobody else wants the cores."""
    machine = Machine(cores)
    speed = machine.run(30, lambda: n_tokens)
    assert machine.control.n_threads == cores
    assert speed >= 0.98 * machine.fixed(cores, n_tokens)


@pytest.mark.parametrize("supply", [True, False])
@pytest.mark.parametrize("n_tokens", [1, 32])
@pytest.mark.parametrize("busy", [0, 1, 2])
def test_auto_is_near_the_better_fixed_count(busy: int, n_tokens: int, supply: bool) -> None:
    """With 0, 1 and 2 busy processes on 2 cores, from idle on; also where the system's figures are not to be had."""
    machine = Machine(2, supply=supply)
    machine.run(2, lambda: n_tokens)
    machine.busy = busy
    speed = machine.run(20, lambda: n_tokens)
    better = max(machine.fixed(1, n_tokens), machine.fixed(2, n_tokens))
    assert speed >= (0.98 if busy == 0 else 0.90) * better


def test_busy_from_the_start() -> None:
    """There is no good step to compare with: the supply alone tells."""
    machine = Machine(2)
    machine.busy = 1
    assert machine.run(5) >= 0.90 * machine.fixed(1)
    assert machine.control.n_threads == 1


def test_quick_to_give_way_slow_to_take_back() -> None:
    """A thread goes within half a second of load, and comes back in seconds when the load is gone."""
    machine = Machine(2)
    machine.run(5)
    machine.busy = 1
    began = machine.now
    while machine.control.n_threads == 2:
        machine.step()
    assert machine.now - began < 0.5
    machine.run(10)
    machine.busy = 0
    began = machine.now
    while machine.control.n_threads == 1:
        machine.step()
    assert 0.05 < machine.now - began < 5


@pytest.mark.parametrize("period", [0.2, 0.7, 2.0])
def test_no_oscillation(period: float) -> None:
    """A neighbour that comes and goes moves the count less and less often."""
    machine = Machine(2)
    for _ in range(int(60 / period)):
        machine.busy = 1 - machine.busy
        machine.run(period / 2)
    changes = [at for at, _ in machine.history]
    assert len([at for at in changes if at > machine.now / 2]) <= 12


def test_many_cores_give_up_only_what_others_take() -> None:
    """4 busy processes on 16 cores leave 12."""
    machine = Machine(16)
    machine.run(2)
    machine.busy = 4
    machine.run(5)
    assert 11 <= machine.control.n_threads <= 12
    machine.busy = 0
    machine.run(30)
    assert machine.control.n_threads == 16


def test_prompts_between_single_tokens_are_no_slow_steps() -> None:
    """Steps are compared with steps of their size: a prompt of 512 tokens does not look like a stall."""
    machine = Machine(2)
    sizes = iter([1, 1, 1, 512, 300, 8, 1, 40] * 2000)
    machine.run(30, lambda: next(sizes))
    assert machine.control.n_threads == 2


def test_others_in_a_pause() -> None:
    """Who ran during a pause may run on: the first step has fewer threads; they come back soon if nobody does."""
    machine = Machine(2)
    machine.run(2)
    machine.busy = 1
    machine.spend(5, 0)
    machine.step(512)
    assert machine.history[-1][1] == 1
    machine.run(1)
    assert machine.control.n_threads == 1
    machine.busy = 0
    machine.run(5)
    assert machine.control.n_threads == 2
    machine.busy = 2
    machine.spend(5, 0)
    machine.busy = 0
    machine.run(1.5)
    assert machine.control.n_threads == 2


def test_the_first_step_after_a_pause_tells() -> None:
    """Others who came with it: the next one has fewer threads."""
    machine = Machine(2)
    machine.run(2)
    machine.spend(5, 0)
    machine.busy = 1
    machine.step(512)
    assert machine.control.n_threads == 1


def test_one_core_is_left_alone() -> None:
    """There is nothing to choose."""
    machine = Machine(1)
    machine.busy = 3
    machine.run(1)
    assert machine.control.changes == 0


def _stat(cpus: dict[str, tuple[int, int]]) -> str:
    """/proc/stat with user and idle ticks for some CPUs."""
    lines = ["cpu  0 0 0 0 0 0 0 0 0 0"]
    lines += [f"{name} {user} 0 0 {idle} 0 0 0 0 0 0" for name, (user, idle) in cpus.items()]
    return "\n".join([*lines, "intr 1 2 3"])


def test_supply_is_own_time_and_idle_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two CPUs in one second: 0.6 s were ours, 0.5 s idle, the rest went to others."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    wall, own, text = [0.0], [0.0], [_stat({"cpu0": (0, 0), "cpu1": (0, 0), "cpu7": (0, 0)})]
    supply = CpuSupply(lambda: wall[0], lambda: own[0], lambda: text[0])
    wall[0], own[0], text[0] = 1.0, 0.6, _stat({"cpu0": (100, 0), "cpu1": (50, 50), "cpu7": (0, 100)})
    assert supply.available() == pytest.approx(1.1)


@pytest.mark.parametrize("text", ["", "cpu0 1 2", "cpu0 a b c d e", _stat({"cpu0": (0, 0), "cpu1": (0, 0)})])
def test_supply_is_unknown_where_the_figures_cannot_be_right(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox whose /proc/stat is missing, broken or stands still."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    wall = [0.0]
    supply = CpuSupply(lambda: wall[0], lambda: wall[0], lambda: text)
    wall[0] = 1.0
    assert supply.available() is None


def test_supply_of_this_system() -> None:
    """The real figures are a number of cores, or unknown; never an exception."""
    supply = CpuSupply()
    total = sum(i * i for i in range(2_000_000))
    found = supply.available()
    assert total
    assert found is None or 0 <= found <= 1.3 * len(supply._cpus)
