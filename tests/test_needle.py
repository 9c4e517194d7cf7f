"""Needles in haystacks: texts that have one answer, and what is counted as found."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from launch.needle import main
from trainer.data.tokens import ByteTokenizer
from trainer.generate.text_model import TextModel
from trainer.needle import measure as measuring
from trainer.needle.haystack import question, training_text


@pytest.mark.parametrize("length", [60, 250, 1000])
def test_every_question_has_one_answer_in_its_text(length: int) -> None:
    random = np.random.RandomState(0)
    for _ in range(20):
        text = training_text(length, random)
        assert abs(len(text) - length) < 15
        asked = re.findall(r"\?([A-Z])(\d)", text)
        pairs = re.findall(r"(?<!\?)\b([A-Z])(\d)", text)
        assert set(asked) == set(pairs) and len({name for name, _ in pairs}) == len(pairs)


def test_a_needle_lies_at_its_depth() -> None:
    random = np.random.RandomState(1)
    for depth in (0.0, 0.25, 1.0):
        for _ in range(10):
            asked = question(2000, depth, random)
            name = asked.text[-1]
            (place,) = [m.start() for m in re.finditer(rf"(?<!\?){name}{asked.answer}", asked.text)]
            assert abs(place / len(asked.text) - depth) < 0.12
            assert asked.text.count(f"?{name}") == 1


def test_shares_are_of_the_needles_at_each_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that finds only what is in the last 100 characters."""
    tokenizer = ByteTokenizer()

    def near(model: Any, prompts: list[list[int]], new: int) -> list[list[int]]:
        assert new == 1
        texts = [bytes(prompt).decode() for prompt in prompts]
        found = [re.search(rf"{text[-1]}(\d)", text[-101:-1]) for text in texts]
        return [[ord(match[1])] if match else [ord("x")] for match in found]

    monkeypatch.setattr(measuring, "continue_texts", near)
    stub = SimpleNamespace(tokenizer=tokenizer, prompt_tokens=lambda text: list(text.encode()))
    seen: list[tuple[int, int]] = []
    found = measuring.measure(
        cast(TextModel, stub), "it", [80, 400], [0.0, 0.5, 1.0], 20, 1,
        lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert found.shares[0] == [1.0, 1.0, 1.0] and found.shares[1] == [0.0, 0.0, 1.0]
    assert found.by_length() == [1.0, pytest.approx(1 / 3)] and seen[-1] == (120, 120)


def test_texts_are_written_and_what_is_no_checkpoint_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "needles.jsonl"
    assert main(["make", "--length", "200", "--texts", "50", "--out", str(out)]) == 0
    texts = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert len(texts) == 50 and 90 < min(map(len, texts)) < max(map(len, texts)) < 215
    capsys.readouterr()
    assert main(["measure", str(tmp_path), "--lengths", "100"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
