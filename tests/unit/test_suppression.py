"""The suppression list in memory: what a change does, and whom it stops."""

from __future__ import annotations

from shared.archive import Suppression
from worker.suppression import NOBODY, OLD_S, Listed

ANN, BEN = 15550000001, 15550000002


def entry(phone: int, change: int, scope: str = "all", *, is_lifted: bool = False) -> Suppression:
    return Suppression(f"sup_{change}", phone, scope, "", "api", is_lifted, change)


def test_an_entry_stops_its_person_until_it_is_lifted() -> None:
    listed = Listed(b"key")
    listed.apply([entry(ANN, 1)])
    assert listed.stops(ANN, is_marketing=False)
    assert not listed.stops(BEN, is_marketing=True)
    listed.apply([entry(ANN, 2, is_lifted=True)])
    assert not listed.stops(ANN, is_marketing=True)
    assert (len(listed), listed.change) == (0, 2)


def test_marketing_stops_marketing_alone() -> None:
    listed = Listed(b"key")
    listed.apply([entry(ANN, 1, "marketing")])
    assert listed.stops(ANN, is_marketing=True)
    assert not listed.stops(ANN, is_marketing=False)
    listed.apply([entry(ANN, 2, "all"), entry(ANN, 3, "marketing", is_lifted=True)])
    assert listed.stops(ANN, is_marketing=False)


def test_a_person_lifted_and_listed_again_in_one_page_is_listed() -> None:
    listed = Listed(b"key")
    listed.apply([entry(ANN, 1, is_lifted=True), entry(ANN, 2)])
    assert listed.stops(ANN, is_marketing=False)


def test_many_at_once_come_to_the_same_as_one_by_one() -> None:
    changes = [entry(ANN + n % 700, n + 1, is_lifted=n % 3 == 0) for n in range(1000)]
    at_once, singly = Listed(b"key"), Listed(b"key")
    at_once.apply(changes)
    for change in changes:
        singly.apply([change])
    assert list(at_once._all) == list(singly._all) == sorted(singly._all)
    assert len(at_once) == len({c.phone for c in changes} - {
        phone for phone in {c.phone for c in changes}
        if [c for c in changes if c.phone == phone][-1].is_lifted
    })  # fmt: skip


def test_the_same_change_twice_changes_nothing_more() -> None:
    listed = Listed(b"key")
    for _ in range(2):
        listed.apply([entry(ANN, 1), entry(BEN, 2)])
    assert len(listed) == 2


def test_a_copy_grows_old_and_the_empty_bench_never_does() -> None:
    listed = Listed(b"key")
    assert not listed.is_fresh(0.0)
    listed.read_s = 100.0
    assert listed.is_fresh(100.0 + OLD_S)
    assert not listed.is_fresh(100.1 + OLD_S)
    assert NOBODY.is_fresh(1e12)
    assert not NOBODY.stops(ANN, is_marketing=True)


def test_hashes_of_another_key_say_nothing() -> None:
    one, other = Listed(b"one"), Listed(b"other")
    one.apply([entry(ANN, 1)])
    other.apply([entry(ANN, 1)])
    assert list(one._all) != list(other._all)
