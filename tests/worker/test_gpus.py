"""Which GPUs are used: none that is broken, none on which somebody else sits, none that another worker has."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from pathlib import Path

import pytest

from tests.worker.nvidia_smi import Process, answer, gpu
from worker import gpus
from worker.gpus import Gpu, NoAnswer, parse
from worker.slots import GpuWatch, Slots


def one(changes: dict[str, str | None] | None = None, *processes: Process) -> Gpu:
    (found,) = parse(answer(gpu("GPU-a", changes, processes)))
    return found


def test_a_healthy_idle_gpu_is_neither_broken_nor_busy() -> None:
    assert parse(answer(gpu("GPU-a"), gpu("GPU-b"))) == [Gpu("0", "GPU-a"), Gpu("1", "GPU-b")]


def test_facts_that_a_driver_does_not_know_are_no_fault() -> None:
    unknown = dict.fromkeys(
        ["gpu_recovery_action", "gpu_reset_status/reset_required", "remapped_rows/remapped_row_failure"]
    )
    assert one(unknown) == Gpu("0", "GPU-a")


@pytest.mark.parametrize(
    ("place", "said", "words"),
    [
        ("remapped_rows/remapped_row_failure", "Yes", "has to be replaced"),
        ("remapped_rows/remapped_row_pending", "Yes", "waits for a reset"),
        ("retired_pages/pending_retirement", "Yes", "wait for a reset"),
        ("gpu_reset_status/reset_required", "Yes", "has to be reset"),
        ("gpu_recovery_action", "Drain and Reset", "the driver asks for: Drain and Reset"),
        ("fb_memory_usage/used", "GPU requires reset", "doesn't answer: its memory in use is GPU requires reset"),
        ("fb_memory_usage/used", None, "doesn't answer"),
    ],
)
def test_a_broken_gpu_says_what_is_wrong(place: str, said: str | None, words: str) -> None:
    broken = one({place: said}).broken
    assert broken is not None and words in broken


def test_who_computes_on_it_makes_it_busy() -> None:
    found = one({"fb_memory_usage/used": "3300 MiB"}, ("4711", "C", "3277 MiB"), ("4712", "M+C", "N/A"))
    assert found.busy == "pid 4711, 3.2 GiB; pid 4712, ? GiB"


def test_a_desktop_s_windows_do_not() -> None:
    assert one({"fb_memory_usage/used": "2400 MiB"}, ("900", "G", "2300 MiB")).busy is None


def test_memory_in_use_by_nobody_that_can_be_seen_makes_it_busy() -> None:
    """As of a process in another container."""
    assert one({"fb_memory_usage/used": "12288 MiB"}).busy == (
        "pid unknown, 12.0 GiB: a process that can't be seen from here"
    )


def test_an_answer_that_can_t_be_read_is_said() -> None:
    with pytest.raises(NoAnswer, match=r"can't be read.*Unable to determine the device handle"):
        parse("Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error")


def test_a_program_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU is lost'\nexit 15\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(NoAnswer, match="GPU is lost"):
        gpus.look()


# -- slots ---------------------------------------------------------------------------------------------


@pytest.fixture
def slots() -> Slots:
    return Slots("cuda", ["GPU-a", "GPU-b", "GPU-c"])


def see(slots: Slots, *found: Gpu) -> None:
    slots.seen(list(found), idle=slots.idle)


A, B, C = (Gpu(str(index), f"GPU-{name}") for index, name in enumerate("abc"))
BUSY_A = Gpu("0", "GPU-a", busy="pid 7, 1.0 GiB")
BROKEN_B = Gpu("1", "GPU-b", broken="it has to be reset")


def test_what_must_not_be_used_is_never_taken_and_says_why(slots: Slots) -> None:
    see(slots, BUSY_A, BROKEN_B, C)
    assert slots.out == {"GPU-a": "busy (pid 7, 1.0 GiB)", "GPU-b": "it has to be reset"}
    assert (slots.free, slots.total, slots.take(1)) == (1, 1, ["GPU-c"])
    with pytest.raises(ValueError, match="1 slots were to be taken, and 0 are free"):
        slots.take(1)


def test_it_is_used_again_once_all_is_well(slots: Slots) -> None:
    see(slots, BUSY_A, BROKEN_B, C)
    see(slots, A, B, C)
    assert (slots.out, slots.free, slots.total) == ({}, 3, 3)


def test_our_own_processes_make_nothing_busy(slots: Slots) -> None:
    taken = slots.take(1)
    see(slots, BUSY_A, B, C)
    assert (taken, slots.out, slots.free, slots.total) == (["GPU-a"], {}, 2, 3)


def test_what_a_look_saw_of_our_own_that_has_ended_since_is_not_held_against_the_gpu(slots: Slots) -> None:
    taken = slots.take(1)
    idle = slots.idle
    slots.give_back(taken)
    slots.seen([BUSY_A, B, C], idle=idle & slots.idle)
    assert slots.out == {}


def test_a_gpu_that_breaks_under_a_run_is_out_when_it_comes_back(slots: Slots) -> None:
    taken = slots.take(2)
    see(slots, A, BROKEN_B, C)
    assert (slots.free, slots.total) == (1, 2)
    slots.give_back(taken)
    assert sorted(slots.take(2)) == ["GPU-a", "GPU-c"]


def test_a_gpu_that_is_gone_is_out(slots: Slots) -> None:
    see(slots, A, B)
    assert slots.out == {"GPU-c": "it is no longer listed by nvidia-smi"}


def test_without_an_answer_nothing_new_is_begun(slots: Slots) -> None:
    slots.unseen("GPU is lost")
    assert (slots.free, slots.out["GPU-a"]) == (0, "nvidia-smi fails: GPU is lost")
    see(slots, A, B, C)
    assert slots.free == 3


def test_what_another_worker_has_is_left_to_it(slots: Slots) -> None:
    slots.leave_to_others({"GPU-b": "worker-1", "GPU-z": "worker-2"})
    assert slots.out == {"GPU-b": "worker worker-1 has it"}
    slots.leave_to_others({})
    assert slots.free == 3


class ByHand(Executor):
    """Runs what was submitted when it is told to."""

    def __init__(self) -> None:
        self.submitted: list[tuple[Future[list[Gpu]], object]] = []

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.submitted.append((Future(), fn))
        return self.submitted[-1][0]


def test_the_watch_looks_beside_the_loop_and_takes_what_it_saw(slots: Slots, caplog: pytest.LogCaptureFixture) -> None:
    pool = ByHand()
    watch = GpuWatch(slots, pool)
    watch.poll()
    watch.poll()
    assert len(pool.submitted) == 1, "one look at a time"
    assert slots.free == 3, "nothing is known yet"
    pool.submitted[0][0].set_result([BUSY_A, B, C])
    watch.poll()
    assert slots.free == 2
    assert "GPU GPU-a is not used: busy (pid 7, 1.0 GiB)" in caplog.text


def test_a_look_that_fails_takes_the_gpus_out(slots: Slots) -> None:
    pool = ByHand()
    watch = GpuWatch(slots, pool)
    watch.poll()
    pool.submitted[0][0].set_exception(NoAnswer("it gave no answer within 30 s"))
    watch.poll()
    assert slots.out["GPU-a"] == "nvidia-smi fails: it gave no answer within 30 s"


def test_on_a_cpu_nothing_is_looked_at() -> None:
    pool = ByHand()
    GpuWatch(Slots("cpu", ["0"]), pool).poll()
    assert pool.submitted == []
