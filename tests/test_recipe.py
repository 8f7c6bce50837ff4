"""Recipes: TOML and options give one object; what is unknown or of a wrong type is named."""

import pytest

from qcompile.errors import RecipeError
from qcompile.recipe import Gates, Recipe, recipe_from

GOOD = """
scheme = "int8"
cpu = "avx2"
exclude = ["/head/*"]
float_first = true

[calibration]
method = "entropy"
samples = 64

[preprocess]
resize = 256
crop = [224, 224]
mean = [0.485, 0.456, 0.406]

[gates]
min_sqnr = 20
"""


def test_toml_and_options(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(GOOD, "utf-8")
    recipe = recipe_from({"calibration": {"samples": 8}, "float_last": True}, path)
    assert recipe.calibration.method == "entropy", "the file's key beside the overridden one stays"
    assert recipe.calibration.samples == 8
    assert (recipe.float_first, recipe.float_last) == (True, True)
    assert recipe.exclude == ("/head/*",)
    assert recipe.preprocess is not None
    assert recipe.preprocess.crop == (224, 224)
    assert recipe.gates == Gates(min_sqnr=20)
    assert recipe_from(recipe.model_dump()) == recipe


def test_no_file_and_no_options_are_the_defaults():
    assert recipe_from({}) == Recipe()
    assert Recipe().scheme == "int8"
    assert Recipe().calibration.method == "auto"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("shceme = 'int8'", "shceme: no such key"),
        ("[calibration]\nmethods = 'mse'", "calibration.methods: no such key"),
        ("scheme = 'int4'", "scheme: Input should be 'int8', 'int8-dynamic', 'weight-only', 'fp8'"),
        ("cpu = 'pentium'", "cpu: Input should be"),
        ("exclude = 3", "exclude: Input should be"),
        ("exclude = [3]", "exclude.0: Input should be a valid string"),
        ("[calibration]\nsamples = 0", "calibration.samples: Input should be greater"),
        ("[calibration]\npercentile = 101", "calibration.percentile: Input should be less"),
        ("[calibration]\nholdback = 1.0", "calibration.holdback: Input should be less than 1"),
        ("[preprocess]\nresize = 0", "preprocess.resize: a side must be 1 or more"),
        ("[preprocess]\ncrop = [4, -3]", "preprocess.crop: a side must be 1 or more"),
        (
            "[preprocess]\nmean = [1, 2]",
            "preprocess.mean: must have 1 or 3 numbers, not 2",
        ),
        (
            "[preprocess]\nchannels = 'gray'\nstd = [1, 2, 3]",
            "preprocess.std: must have 1 number, not 3",
        ),
        ("[preprocess]\nstd = [1, 0, 1]", "preprocess.std: must not be 0"),
        ("[accuracy]\nalgorithms = []", "accuracy.algorithms: it names nothing"),
        ("[accuracy]\nalgorithms = 'auto+gptq'", "accuracy.algorithms: auto stands alone"),
        ("[accuracy]\nalgorithms = 'smooth'", "accuracy.algorithms: 'smooth' is none of auto"),
        ("[gates]\nmin_agreement = 97", "gates.min_agreement: Input should be less"),
        ("[gates]\nmax_drop = nan", "gates.max_drop: Input should be"),
        ("jobs = 0", "jobs: Input should be greater"),
        ("float_first = 'perhaps'", "float_first: Input should be a valid boolean"),
        ("calibration = 'mse'", "calibration: Input should be"),
        ("[preprocess]\nlayout = 'chwn'", "preprocess.layout: Input should be"),
        ("scheme = ", "Invalid value"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_key(text, message, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError, match=message) as caught:
        recipe_from({}, path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_options_and_files(tmp_path):
    with pytest.raises(RecipeError, match=r"^--calib-method: Input should be"):
        recipe_from({"calibration": {"method": "magic"}})
    with pytest.raises(RecipeError, match=r"absent.toml"):
        recipe_from({}, tmp_path / "absent.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary.toml"):
        recipe_from({}, binary)
