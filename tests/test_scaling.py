"""The cost model of docs/scaling.md against arithmetic by hand."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys

import pytest
from toy import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
from scaling import CHOICES, Choice, Machine, efficiency, exchange_seconds, recommended, step_seconds

FREE = Machine(latency=0.0, jitter=0.0, overlap=0.0, efficiency=0.5, network=1e9, inside=1e12, gradient_bytes=50e6)


def test_an_exchange_over_the_network_is_a_ring_at_the_fitted_rate() -> None:
    assert exchange_seconds(FREE, 50e6, 1) == 0
    assert exchange_seconds(FREE, 50e6, 16) == pytest.approx(2 * 1 / 2 * 50e6 / 0.5e9)  # two nodes
    assert exchange_seconds(FREE, 50e6, 32) == pytest.approx(2 * 3 / 4 * 50e6 / 0.5e9)  # four
    assert exchange_seconds(dataclasses.replace(FREE, latency=1e-3), 0, 16) == pytest.approx(8e-3)


def test_choices_divide_what_is_sent() -> None:
    def sent(choice: Choice) -> float:
        alone = dataclasses.replace(FREE, pass_seconds=0.0, update_seconds=0.0)
        return step_seconds(alone, choice, 16) / choice.passes

    whole = sent(Choice("", 1.0))
    assert sent(Choice("", 0.5)) == pytest.approx(whole / 2)
    assert sent(Choice("", 0.5, passes=4)) == pytest.approx(whole / 8)
    assert sent(Choice("", 3.0, period=30)) == pytest.approx(whole / 10)


def test_what_the_backward_pass_hides_is_not_paid_but_waiting_for_the_slowest_is() -> None:
    machine = dataclasses.replace(FREE, overlap=0.5, backward_seconds=0.1, pass_seconds=0.2, update_seconds=0.0)
    assert step_seconds(machine, CHOICES[0], 16) == pytest.approx(0.2 + 0.1 - 0.05)
    slow = dataclasses.replace(machine, network=1e15, jitter=0.01)
    assert step_seconds(slow, CHOICES[0], 16) == pytest.approx(0.2 + 0.01 * math.sqrt(2 * math.log(16)))


def test_the_gentlest_choice_that_is_enough_is_recommended() -> None:
    quick = dataclasses.replace(FREE, network=1e15)
    assert recommended(quick, 1024) is CHOICES[0]
    best = recommended(dataclasses.replace(FREE, network=1e3), 1024)  # nothing is enough: the best there is
    assert efficiency(FREE, best, 1024) == max(efficiency(FREE, choice, 1024) for choice in CHOICES)


def test_the_script_takes_ones_own_numbers() -> None:
    command = [sys.executable, "benchmarks/scaling.py", "--pass-seconds", "1", "--network", "1e15"]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert "| 1024 | " in printed and "as it is | 8192 (over an epoch) |" in printed
