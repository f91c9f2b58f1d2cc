"""What ``--help`` says of defaults."""

import pytest

from amdim_fast.cli.main import main


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("embed", ["show no bars, and do not say first what runs where -", "(default: 250)"]),
        ("evaluate", ["fetch what is missing there --skip-bad", "(default: data)"]),
        ("export", ["(default: safetensors) --policy"]),
    ],
)
def test_defaults_are_values(capsys, command, said):
    """Flags have none, and options without one say what happens then."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = " ".join(capsys.readouterr().out.split()) + " -"
    for part in said:
        assert part in text
    assert not any(f"(default: {value})" in text for value in (None, True, False))
