"""What fits and what does not, from numbers; and that what the deployment files grant is enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.l1.preflight import GIB, MIB, Room, largest, readable, refusal, warnings
from tests.unit.deploy import sizing

PROCESS = 64 * MIB


def shm(total: int, free: int | None = None) -> Room:
    return Room("shm", "/dev/shm", total, total if free is None else free)


def limit(total: int, free: int | None = None, name: str = "/sys/fs/cgroup/memory.max") -> Room:
    return Room("limit", name, total, total if free is None else free)


def machine(total: int, free: int | None = None) -> Room:
    return Room("machine", "the machine's memory (MemAvailable)", total, total if free is None else free)


class TestRefusal:
    def test_what_fits_everywhere_is_not_refused(self) -> None:
        assert refusal(4 * GIB, [shm(4 * GIB), limit(5 * GIB), machine(8 * GIB)]) is None

    def test_without_a_known_bound_nothing_is_refused(self) -> None:
        assert refusal(1 << 60, []) is None

    def test_the_small_shared_memory_of_a_container_is_told_with_its_remedies(self) -> None:
        assert refusal(16 * GIB, [shm(64 * MIB, 63 * MIB), machine(64 * GIB)]) == (
            "/dev/shm has 63 MiB of 64 MiB free for 16 GiB (docker run --shm-size=17g; Kubernetes: an emptyDir there "
            "with medium: Memory and sizeLimit: 17Gi). 63 MiB would fit: make l1.size smaller, or give it more"
        )

    def test_a_memory_limit_is_told_with_its_file_and_what_to_raise_it_to(self) -> None:
        assert refusal(16 * GIB, [shm(64 * GIB), limit(16 * GIB, 16 * GIB - 200 * MIB)]) == (
            "the memory limit /sys/fs/cgroup/memory.max has 15.8 GiB of 16 GiB free for 16.1 GiB with page tables and "
            "the process (raise it to 16.3 GiB at least). 15.7 GiB would fit: make l1.size smaller, or give it more"
        )

    def test_a_small_machine_is_told(self) -> None:
        assert refusal(16 * GIB, [machine(16 * GIB, 9 * GIB)]) == (
            "the machine's memory (MemAvailable) has 9 GiB of 16 GiB free for 16.1 GiB with page tables and the "
            "process. 8.9 GiB would fit: make l1.size smaller, or give it more"
        )

    def test_everything_that_is_too_small_is_told_at_once(self) -> None:
        found = refusal(16 * GIB, [shm(GIB), limit(2 * GIB), machine(3 * GIB)])
        assert found is not None
        assert [part.split(" has ")[0] for part in found.split("; ") if " has " in part] == [
            "/dev/shm",
            "the memory limit /sys/fs/cgroup/memory.max",
            "the machine's memory (MemAvailable)",
        ]

    def test_of_several_limits_the_tightest_counts(self) -> None:
        groups = [limit(8 * GIB, name="/pod"), limit(4 * GIB, 2 * GIB, name="/group"), limit(3 * GIB, name="/inner")]
        found = refusal(5 * GIB, groups)
        assert found is not None
        assert "/group has 2 GiB of 4 GiB free" in found
        assert "/pod" not in found
        assert "/inner" not in found

    def test_shared_memory_may_be_filled_to_the_last_byte_and_memory_may_not(self) -> None:
        assert refusal(GIB, [shm(GIB)]) is None
        assert refusal(GIB + 1, [shm(GIB)]) is not None
        needed = GIB + GIB // 512 + PROCESS
        for room in (limit, machine):
            assert refusal(GIB, [room(needed)]) is None
            assert refusal(GIB, [room(needed - 1)]) is not None


@given(st.integers(PROCESS, 1 << 44), st.integers(MIB, 1 << 44))
def test_the_largest_that_is_named_fits_and_a_mib_more_does_not(memory: int, shared: int) -> None:
    rooms = [shm(shared), limit(memory)]
    assert refusal(largest(rooms), rooms) is None
    assert refusal(largest(rooms) + 2 * MIB, rooms) is not None


def test_where_the_process_alone_does_not_fit_nothing_does() -> None:
    assert largest([limit(PROCESS - 1)]) == 0


class TestWarnings:
    def test_little_memory_beside_l1_is_told(self) -> None:
        assert warnings(4 * GIB, 4 * GIB, [shm(8 * GIB), limit(5 * GIB, 4 * GIB + 100 * MIB), machine(64 * GIB)]) == [
            "/sys/fs/cgroup/memory.max has 4 GiB free, which leaves 100 MiB beside L1; 320 MiB are advised for page "
            "tables, the index and buffers"
        ]

    def test_a_full_shared_memory_is_no_warning(self) -> None:
        """How much of it engines need besides is not known here."""
        assert warnings(4 * GIB, 4 * GIB, [shm(4 * GIB)]) == []

    def test_a_largest_size_that_can_never_be_reached_is_told(self) -> None:
        assert warnings(GIB, 9 * GIB, [shm(8 * GIB), limit(64 * GIB)]) == [
            "l1.max_size of 9 GiB is out of reach while /dev/shm has 8 GiB in all"
        ]

    @pytest.mark.parametrize("gibibytes", [1, 4, 16, 64, 256, 1024])
    def test_what_the_deployment_files_grant_is_enough(self, gibibytes: int) -> None:
        l1 = gibibytes * GIB
        granted = sizing.memory(l1)
        rooms = [shm(sizing.shm(l1)), limit(granted, granted - 240 * MIB)]
        assert (refusal(l1, rooms), warnings(l1, l1, rooms)) == (None, [])


@pytest.mark.parametrize(
    ("size", "down", "up"),
    [
        (0, "0 MiB", "0 MiB"),
        (1, "0 MiB", "0.1 MiB"),
        (GIB - 1, "1023.9 MiB", "1024 MiB"),
        (GIB, "1 GiB", "1 GiB"),
        (GIB + 1, "1 GiB", "1.1 GiB"),
        (3 * GIB // 2, "1.5 GiB", "1.5 GiB"),
    ],
)
def test_sizes_are_written_for_people(size: int, down: str, up: str) -> None:
    assert (readable(size), readable(size, up=True)) == (down, up)
