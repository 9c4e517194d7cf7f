"""One number for one text: from a run, from its weights, and from transformers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from launch.evaluate import main
from launch.prepare import main as prepare
from tests.commands import TINY, finish, start
from trainer.evaluate.named_sets import open_set
from trainer.generate.text_model import load_text_model

ALONE = ("--mesh.expert", "1", "--pipeline.schedule", "1f1b")
LENGTH = 16


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With prepared text, out, and a run on it, runs/tiny."""
    folder = tmp_path_factory.mktemp("evaluate")
    words = ("the", "of", "and", "to", "in", "is", "was", "that", "for", "it", "as", "with")
    lines = (
        json.dumps({"text": " ".join(words[(n * k) % 12] for k in range(3, 60))}) for n in range(80)
    )
    (folder / "a.jsonl").write_text("\n".join(lines))
    options = ["--validation-fraction", "0.3", "--train-tokenizer", "290", "--workers", "0"]
    assert prepare([str(folder / "a.jsonl"), "--out", str(folder / "out"), *options]) == 0
    arguments = (
        "--config", TINY, *ALONE, "--data.path", "out", "--model.vocab_size", "300",
        "--metrics.eval_sequences", "9",
    )  # fmt: skip
    code, _, err = finish(start(folder, *arguments))
    assert code == 0, err
    return folder


def evaluated(capsys: pytest.CaptureFixture[str], *options: object) -> dict[str, Any]:
    assert main([*map(str, options), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_run_its_weights_and_transformers_give_one_number(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = place / "runs" / "tiny"
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    said = [row["validation_loss"] for row in rows if "validation_loss" in row][-1]
    sets = ("--set", f"text={place / 'out'}", "--sequences", "9")
    (found,) = evaluated(capsys, "--checkpoint", run, *sets)["sets"]
    assert found["loss"] == pytest.approx(said, rel=1e-6)
    assert found["tokens"] == 9 * LENGTH and len(found["mtp"]) == 1
    assert found["perplexity"] == pytest.approx(math.exp(said), rel=1e-5)
    bits = said / math.log(2) * found["tokens"] / found["bytes"]
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-6)

    model = load_text_model(run / "weights", None, torch.float32, False, lambda done, total: None)
    named = open_set("text", str(place / "out"), model.tokenizer, LENGTH, 1, 9)
    theirs = DeepseekV3ForCausalLM.from_pretrained(run / "weights", dtype=torch.float32)
    with torch.no_grad():
        logits = theirs(named.windows[:, :LENGTH], use_cache=False).logits
    targets = named.windows[:, 1 : LENGTH + 1].flatten()
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_other_text_is_read_whole_and_samples_are_written(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "b.txt").write_text("the of and to in is " * 100)
    checkpoint = place / "runs" / "tiny" / "weights"
    options = ("--set", f"b={place / 'b.txt'}", "--prompt", "the of", "--new-tokens", 5)
    found = evaluated(capsys, "--checkpoint", checkpoint, *options)
    (b,) = found["sets"]
    assert b["name"] == "b" and b["bytes"] > 0.9 * 2000
    assert found["samples"][0]["prompt"] == "the of"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "nothing to do"),
        (("--set", "=x"), "give NAME=PATH"),
        (("--set", "a=nowhere"), "nowhere does not exist"),
        (("--set", "a=bytes"), "another tokenizer"),
        (("--tasks", "a.jsonl"), "--tasks a.jsonl: cannot be read"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    options: tuple[str, ...],
    words: str,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(place)
    if options == ("--set", "a=bytes") and not (place / "bytes").exists():
        assert prepare(["a.jsonl", "--out", "bytes", "--validation-fraction", "0.2"]) == 0
        capsys.readouterr()
    assert main(["--checkpoint", "runs/tiny", *options]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_lm_evals_numbers_are_those_of_the_model(place: Path) -> None:
    """Continuations of several tokens, several texts at once; and whole texts in windows."""
    pytest.importorskip("lm_eval")
    from trainer.evaluate.lm_eval_model import TandemLM

    weights = place / "runs" / "tiny" / "weights"
    model = load_text_model(weights, None, torch.float32, False, lambda done, total: None)
    theirs = DeepseekV3ForCausalLM.from_pretrained(weights, dtype=torch.float32)
    ours = TandemLM(model, LENGTH)

    def logs(tokens: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return theirs(torch.tensor([tokens]), use_cache=False).logits[0].log_softmax(-1)

    pairs = [("the of", " and to"), ("in", " is was that"), ("for it", " as")]
    requests = [SimpleNamespace(args=pair) for pair in pairs]
    for (context, more), (total, greedy) in zip(pairs, ours.loglikelihood(requests)):
        before, whole = (ours.tok_encode(text) for text in (context, context + more))
        after = whole[len(before) :]
        rows = logs(whole[:-1])[len(before) - 1 :]
        assert total == pytest.approx(float(rows[range(len(after)), after].sum()), rel=1e-4)
        assert greedy == (rows.argmax(1).tolist() == after)
    text = "the of and to in is was"
    tokens = [model.lone, *ours.tok_encode(text)]
    (rolling,) = ours.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    if len(tokens) <= LENGTH:
        rows = logs(tokens[:-1])
        wanted = float(rows[np.arange(len(rows)), tokens[1:]].sum())
        assert rolling == pytest.approx(wanted, rel=1e-4)
    stop = SimpleNamespace(args=("the of", {"until": [" "], "max_gen_toks": 8}))
    assert " " not in ours.generate_until([stop])[0]


def test_a_task_file_is_run(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval")
    tasks = Path(__file__).parent.parent / "configs" / "tasks"
    found = evaluated(capsys, "--checkpoint", place / "runs" / "tiny", "--tasks", tasks)
    assert 0 <= found["tasks"]["python_words"]["acc"] <= 1
