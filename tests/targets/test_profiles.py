"""The text of --shapes: what it says, and each way in which it can be wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompile.errors import RecipeError
from qcompile.targets.profiles import Profile, check_profiles, parse_profiles

IMAGE = Profile((1, 3, 32, 32), (8, 3, 32, 32), (64, 3, 32, 32))
TEXT = "input:1x3x32x32,8x3x32x32,64x3x32x32"

NAMES = st.text("abc:/._-0", min_size=1, max_size=12)


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    sizes = st.lists(st.integers(0, 9), min_size=3, max_size=3).map(sorted)
    columns = draw(st.lists(sizes, min_size=1, max_size=5))
    return Profile(*zip(*columns, strict=True))


@given(st.dictionaries(NAMES, profiles(), min_size=1, max_size=3), st.sampled_from((" ", ";")))
def test_what_is_written_is_read(wanted: dict[str, Profile], between: str) -> None:
    text = between.join(
        f"{name}:{','.join('x'.join(map(str, shape)) for shape in profile)}"
        for name, profile in wanted.items()
    )
    assert parse_profiles(text) == wanted


def test_the_documented_form() -> None:
    assert parse_profiles(TEXT) == {"input": IMAGE}
    assert parse_profiles(f" {TEXT};ids:0/x:1,2,3 ")["ids:0/x"] == Profile((1,), (2,), (3,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "write name:MIN,OPT,MAX"),
        ("1x3,2x3,4x3", "write name:MIN"),
        ("x:", "write name:MIN"),
        (":1,2,3", "write name:MIN"),
        ("x:1x3", "1 shapes, not three"),
        ("x:1,2,3,4", "4 shapes, not three"),
        ("x:1x-3,2x3,3x3", "'1x-3' is no shape"),
        ("x:1*3,2x3,3x3", "is no shape"),
        ("x:1x,2x3,3x3", "is no shape"),
        ("x:\N{SUPERSCRIPT TWO},2,3", "is no shape"),
        ("x:1x3,2x3,4", "differ in rank"),
        ("x:2x3,1x3,4x3", "dimension 0 is 2, 1, 4"),
        ("x:1x3,2x4,4x3", "dimension 1 is 3, 4, 3"),
        ("x:1,2,3 x:1,2,4", "input x is given twice"),
        ("x:1,2,9999999999999", "is no shape"),
        ("x:1x1,2x2,999999999999x999999999999", "more elements than any device"),
    ],
)
def test_malformed(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"^--shapes") as error:
        parse_profiles(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_profiles_that_fit_a_model() -> None:
    check_profiles({"input": IMAGE}, {"input": ("n", 3, 32, 32), "mask": None})
    check_profiles({"input": IMAGE}, {"input": None})
    check_profiles({"input": IMAGE}, {"input": (None, None, 32, 32)})


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        (
            ("n", 1, 32, 32),
            "dimension 1 of 1x3x32x32 is 3, but the model fixes it to 1 (nx1x32x32)",
        ),
        (("n", 3, 32), "has 4 dimensions, the model's input (nx3x32) has 3"),
        ((8, 3, 32, 32), "dimension 0 of 1x3x32x32 is 1, but the model fixes it to 8"),
    ],
)
def test_profiles_that_contradict_a_model(dims: tuple[int | str, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=r"^--shapes input: ") as error:
        check_profiles({"input": IMAGE}, {"input": dims})
    assert message in str(error.value)


def test_a_profile_of_no_input() -> None:
    with pytest.raises(RecipeError, match="--shapes input: no such input; there are: x, mask"):
        check_profiles({"input": IMAGE}, {"x": (1,), "mask": (1,)})
