import pytest

from gendr_core.errors import OptionError
from gendr_core.relatives import REFUSED, RELATIVES, find_relative


@pytest.mark.parametrize(
    ("key", "timestep", "coefficients", "guidance"),
    [
        ("osediff", 999, (14.648814, -14.614641), 1.0),
        ("pisa-sr", 1, (1.0, -1.0), 1.0),
        ("hypir-sd2", 200, (1.151869, -0.571666), 1.0),
        ("s3diff", 999, (14.648814, -14.614641), 1.07),
        ("tvt", 1, (1.000853, -0.041314), 1.0),
    ],
)
def test_the_numbers_are_those_of_the_publications(
    key: str, timestep: int, coefficients: tuple[float, float], guidance: float
) -> None:
    relative = find_relative(key)
    assert (relative.timestep, relative.guidance) == (timestep, guidance)
    assert relative.coefficients == pytest.approx(coefficients, abs=1e-6)


@pytest.mark.parametrize("refused", REFUSED, ids=lambda one: one.key)
def test_a_relative_that_cannot_be_had_is_refused_by_name(refused: object) -> None:
    title, key, reason = (getattr(refused, name) for name in ("title", "key", "reason"))
    with pytest.raises(OptionError) as raised:
        find_relative(key.upper().replace("-", "_"))
    assert str(raised.value) == f"{title} cannot be converted: {reason}"


@pytest.mark.parametrize("relative", RELATIVES, ids=lambda one: one.key)
def test_a_relative_is_found_by_title_and_key(relative: object) -> None:
    assert find_relative(relative.title) is find_relative(relative.key) is relative  # type: ignore[attr-defined]


def test_an_unknown_relative_names_the_known_ones() -> None:
    with pytest.raises(OptionError, match="expected one of osediff, pisa-sr, hypir-sd2, s3diff, tvt, got 'seesr'"):
        find_relative("seesr")
