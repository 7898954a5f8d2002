"""Shard boundaries: they cover every clip once, keep their bounds, and forget what lies far away."""

import pytest

from pipeline.execution.shards import cut_shards, shard_name

SIZES = {"minimum": 8, "average": 20, "maximum": 60}


def _keys(count: int, prefix: str = "clip") -> list[str]:
    return [f"{prefix}{number:05d}" for number in range(count)]


@pytest.mark.parametrize("count", [0, 1, 7, 8, 59, 60, 61, 1000])
def test_every_clip_lies_in_one_shard_within_the_bounds(count: int) -> None:
    shards = cut_shards(_keys(count), **SIZES)
    assert [position for shard in shards for position in shard] == list(range(count))
    assert all(8 <= len(shard) <= 60 for shard in shards[:-1])
    assert all(1 <= len(shard) <= 60 for shard in shards[-1:])


def test_the_average_is_about_what_was_asked_for() -> None:
    shards = cut_shards(_keys(20000), minimum=8, average=20, maximum=1000)
    assert 18 < 20000 / len(shards) < 22


def test_equal_bounds_give_equal_shards() -> None:
    assert [len(shard) for shard in cut_shards(_keys(25), minimum=10, average=10, maximum=10)] == [10, 10, 5]


@pytest.mark.parametrize("at", [0, 300, 999])
def test_an_added_clip_disturbs_only_its_neighbourhood(at: int) -> None:
    before = _keys(1000)
    after = [*before[:at], "new", *before[at:]]

    def names(keys: list[str]) -> set[str]:
        return {shard_name(keys[shard.start : shard.stop]) for shard in cut_shards(keys, **SIZES)}

    assert len(names(after) - names(before)) <= 5
    assert len(names(before)) > 40


def test_names_follow_from_the_clips_alone() -> None:
    assert shard_name(["a", "b"]) == shard_name(["a", "b"])
    assert len({shard_name(keys) for keys in (["a", "b"], ["b", "a"], ["ab"], ["a"], ["a", "b", ""], [])}) == 6


@pytest.mark.parametrize("sizes", [(0, 1, 2), (3, 2, 4), (1, 5, 4)])
def test_impossible_bounds_are_refused(sizes: tuple[int, int, int]) -> None:
    minimum, average, maximum = sizes
    with pytest.raises(ValueError, match=f"minimum {minimum} <= average {average} <= maximum {maximum}"):
        cut_shards(["a"], minimum=minimum, average=average, maximum=maximum)
