"""One rank's error is raised, with its type and one sentence, on 1, 2 and 4 gloo processes."""

import pytest

from amdim_fast.distributed.agreement import ErrorsOnAllRanks
from tests.distributed import agreement_cases as cases
from tests.processes import found_by_ranks

WORLDS = (1, 2, 4)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each world size, started once, what each rank found."""
    parent = tmp_path_factory.mktemp("ranks")
    return found_by_ranks(cases.__file__, parent, seconds=120, suffix="json")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("name", "kind", "base", "sentence"),
    [
        ("type", "FileNotFoundError", "OSError", "no such file"),
        ("own type", "ColorError", "LookupError", "mauve"),
        ("local type", "OSError", "Exception", "full"),
        ("told", "FileNotFoundError", "OSError", "no such file"),
        ("before a call", "FileNotFoundError", "OSError", "no such file"),
    ],
)
def test_the_others_raise_its_type_and_name_it(found, world, name, kind, base, sentence):
    said = [rank[name] for rank in found(world)]
    if world == 1:
        assert said[0][2] == sentence
    else:
        assert said == [[kind, base, f"rank {world - 1}: {sentence}"]] * world


@pytest.mark.parametrize("world", WORLDS[1:])
def test_a_type_that_takes_more_than_a_sentence_becomes_its_base(found, world):
    kind, base, sentence = found(world)[0]["many arguments"]
    assert (kind, base) == ("UnicodeError", "ValueError")
    assert sentence.startswith(f"rank {world - 1}: 'utf-8' codec can't decode byte 0xff")


@pytest.mark.parametrize("world", WORLDS[1:])
def test_the_lowest_failing_rank_is_heard(found, world):
    for rank in found(world):
        assert rank["lowest"] == ["ValueError", "Exception", "rank 1: of 1"]


@pytest.mark.parametrize("world", WORLDS)
def test_an_error_of_all_names_no_rank(found, world):
    for rank in found(world):
        assert rank["same"] == ["ValueError", "Exception", "one for all"]


@pytest.mark.parametrize("world", WORLDS)
def test_without_errors_flags_and_facts_are_compared(found, world):
    for rank in found(world):
        assert rank["none"] is None
        assert rank["agreed"] is None
        assert (rank["flag"], rank["no flag"]) == (True, False)
        if world > 1:
            assert "images; these must be equal: drop the last" in rank["images"][2]
            assert "only the values may differ" in rank["signature"][2]


def test_without_a_group_errors_stay_where_they_are():
    with pytest.raises(OSError, match=r"^full$"), ErrorsOnAllRanks(None, together=True):
        raise OSError("full")
