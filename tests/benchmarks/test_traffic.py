"""The model of ``benchmarks/traffic.py`` against bytes counted in 2 and 4 gloo processes."""

import pytest

from benchmarks import traffic
from tests.benchmarks import traffic_cases as cases
from tests.processes import found_by_ranks

WORLDS = (2, 4)
SECONDS = 120
AGREEMENT = 0.05
ONE_COST = traffic.Costs(1, (49,), (49,))
COSTS = (traffic.SIX_COSTS, ONE_COST)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Of each world size, started once, what each rank counted."""
    parent = tmp_path_factory.mktemp("ranks")
    return found_by_ranks(cases.__file__, parent, SECONDS, suffix="json")


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", range(len(cases.CASES)))
@pytest.mark.parametrize("costs", range(len(COSTS)), ids=["six", "one"])
def test_counted_bytes_are_those_of_the_model(found, world, case, costs):
    width, images, dtype = cases.CASES[case]
    expected = traffic.of_sources(world, images, width, dtype, COSTS[costs])
    for rank in found(world):
        received, sent, held = rank[case][costs]
        assert received == sent
        assert received == pytest.approx(expected.moved, rel=AGREEMENT)
        assert held == pytest.approx(expected.held, rel=AGREEMENT)


@pytest.mark.parametrize("world", WORLDS)
def test_gathering_targets_at_49_locations_would_cost_20_times_more(found, world):
    for case, (width, images, dtype) in enumerate(cases.CASES):
        theirs = traffic.of_targets(world, images, width, dtype, ONE_COST)
        for rank in found(world):
            received, _, held = rank[case][1]
            assert 20 * received < theirs.moved
            assert 5 * held < theirs.held


@pytest.mark.parametrize(
    "plant",
    [
        {"sources": 3},
        {"locations": (25, 25, 49)},
        {"locations": (25, 25, 25) * 2},
    ],
)
def test_a_wrong_model_is_caught(found, plant):
    width, images, dtype = cases.CASES[0]
    wrong = traffic.of_sources(2, images, width, dtype, traffic.SIX_COSTS._replace(**plant))
    received, _, _ = found(2)[0][0][0]
    assert received != pytest.approx(wrong.moved, rel=AGREEMENT)


def test_of_the_cases_in_the_docs(capsys):
    assert traffic.main([]) == 0
    lines = capsys.readouterr().out.splitlines()[2:6]
    assert [line.split("|")[1].strip() for line in lines] == ["1", "8", "64", "1,024"]
    assert lines[0].split("|")[3:8] == [" 0 "] * 5
    for world, images in traffic.CASES[1:]:
        arguments = world, images, traffic.RECIPE.n_rkhs, "bfloat16", traffic.SIX_COSTS
        ours, theirs = traffic.of_sources(*arguments), traffic.of_targets(*arguments)
        assert 20 * ours.moved < theirs.moved


def test_one_case_on_the_command_line(capsys):
    arguments = ["--world-size=2", "--images=4", "--width=8", "--dtype=float32"]
    assert traffic.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "| 2 | 8 |" in shown
    assert "D = 8, L = 25 and 49, float32" in shown
