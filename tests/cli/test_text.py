"""Language models on the command line: text in, perplexity out."""

import json
from pathlib import Path

import pytest

from tests.cli import process
from tests.cli.conftest import Run
from tests.cli.nets import CALIB, MODEL
from tests.cli.process import answer
from tests.languages import decoder, prose, tokenizer_json

WINDOWS = ("--sequence-length", "32")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two decoders, a tokenizer and the same text as .txt and .jsonl."""
    folder = tmp_path_factory.mktemp("language")
    decoder(folder / "a.onnx")
    decoder(folder / "b.onnx", seed=1)
    (folder / "tok.json").write_text(tokenizer_json())
    stories = [prose(60, seed=number) for number in range(30)]
    (folder / "text.txt").write_text("\n\n".join(stories))
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"story": s}) for s in stories))
    (folder / "recipe.toml").write_text(
        "[text]\nfield = 'story'\ntokenizer = 'tok.json'\nlength = 32\n"
    )
    return folder


def test_compare_tells_the_perplexity_of_both(lab: Path) -> None:
    asked = ("compare", "a.onnx", "b.onnx", "--data", "text.txt", "--tokenizer", "tok.json")
    found = answer(process.run(lab, *asked, *WINDOWS, "--perplexity", "--json", "-q"))
    score = found["comparison"]["scores"][0]
    assert score["name"] == "perplexity"
    assert score["lower_is_better"]
    assert score["float_value"] > 1
    assert score["difference"] == score["engine_value"] - score["float_value"] != 0
    for ends in ("interval", "float_interval", "engine_interval"):
        assert score[ends][0] < score[ends][1]
    assert score["count"] == found["comparison"]["samples"] > 32
    again = ("compare", "a.onnx", "b.onnx", "--data", "text.jsonl", "--recipe", "recipe.toml")
    also = answer(process.run(lab, *again, "--metric", "perplexity", "--json", "-q"))
    assert also["comparison"] == found["comparison"]


def test_a_person_sees_that_lower_is_better(lab: Path) -> None:
    done = process.run(
        lab, "compare", "a.onnx", "a.onnx", "--data", "text.txt", "--tokenizer", "tok.json",
        *WINDOWS, "--perplexity", COLUMNS="120",
    )  # fmt: skip
    assert done.code == 0
    assert "perplexity" in done.out
    assert "lower is better" in done.out
    assert "left out: too short for a window of 32" in " ".join(done.out.split())


def test_calibrate_and_build_read_text(lab: Path) -> None:
    text = ("--calib", "text.txt", "--tokenizer", "tok.json", *WINDOWS, "--calib-samples", "40")
    seen = answer(process.run(lab, "calibrate", "a.onnx", *text, "--json", "-q"))
    assert (seen["found"], seen["samples"]) == (50, 40)
    assert seen["tensors"]
    asked = ("build", "a.onnx", "--int8", *text, "--metric", "perplexity", "--allow-slower")
    built = answer(process.run(lab, *asked, "--max-drop", "1e6", "-o", "out", "--json", "-q"))
    score = built["engine"]["scores"][0]
    assert score["name"] == "perplexity"
    assert score["difference"] != 0
    assert built["calibration"]["reused"] == len(seen["tensors"])
    gate = next(gate for gate in built["gates"] if gate["name"] == "max-drop")
    assert gate["measured"] == score["difference"]


def test_bench_makes_up_what_a_decoder_reads(lab: Path) -> None:
    found = answer(process.run(lab, "bench", "a.onnx", "--json", "-q"))
    assert found["inputs"] == "made up"
    assert found["rows"][0]["median_ms"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "text.txt"), "no tokenizer.json in .; give --tokenizer FILE"),
        (("--data", "text.txt", "--tokenizer", "recipe.toml"), "recipe.toml: is no tokenizer"),
        (("--data", "text.jsonl", "--tokenizer", "tok.json"), "line 1 has no text 'text'"),
        (
            ("--data", "text.txt", "--tokenizer", "tok.json", "--metric", "x:y"),
            "leave out --metric",
        ),
        (
            ("--data", "text.txt", "--tokenizer", "tok.json", "--sequence-length", "100000"),
            "no text fills a window of 100000 tokens",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    lab: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = process.run(lab, "compare", "a.onnx", "b.onnx", *arguments, "--perplexity", "-q")
    assert done.code == 2
    assert message in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_what_predicts_no_tokens_has_no_perplexity(run: Run) -> None:
    done = run("compare", MODEL, MODEL, "--data", CALIB, "--perplexity", "-q")
    assert done.code == 2
    assert "predicts no tokens" in " ".join(done.err.split())
