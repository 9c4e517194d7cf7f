"""The generate command on checkpoints as training saves them: what it prints and refuses."""

from __future__ import annotations

import io
import json
import runpy
import shutil
import struct
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DeepseekV3ForCausalLM

from parallel.ranks.process import Process
from tests.commands import ROOT, finish, start
from trainer.build.layout import build
from trainer.checkpoint.export import save_checkpoint
from trainer.checkpoint.hf.companions import read_companions
from trainer.config.schema import (
    AttentionConfig,
    Config,
    DataConfig,
    ModelConfig,
    MoEConfig,
    MTPConfig,
    PipelineConfig,
    RunConfig,
)
from trainer.data.tokens import ByteTokenizer
from trainer.generate import session
from trainer.generate.answer import Answer
from trainer.generate.decode import Counts
from trainer.generate.output import TextOutput
from trainer.generate.question import Question
from trainer.generate.session import Method, answer_all
from trainer.generate.text_model import load_text_model

LONGEST = 40
MODEL = ModelConfig(
    layers=2,
    dense_layers=1,
    dim=32,
    dense_dim=40,
    init_std=0.3,
    attention=AttentionConfig(4, 16, 12, 8, 6, 8),
    moe=MoEConfig(experts=8, top_k=2, groups=2, expert_dim=16, scale=2.5),
    mtp=MTPConfig(2),
)


def save(folder: Path, model: ModelConfig) -> Path:
    config = Config(
        run=RunConfig(seed=4),
        pipeline=PipelineConfig("1f1b", micro_batches=1),
        model=model,
        data=DataConfig(sequence_length=LONGEST, global_batch=1),
    )
    layout = build(config, Process(), torch.device("cpu"))
    save_checkpoint(layout, folder, read_companions(config))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("run") / "weights", MODEL)


@pytest.fixture
def changed(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy, to be spoilt."""
    return Path(shutil.copytree(checkpoint, tmp_path / "changed"))


def command(*arguments: object) -> int:
    script = runpy.run_path(str(ROOT / "launch" / "generate.py"))
    return script["main"](list(map(str, arguments)))


def printed_json(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert command(*arguments, "--json") == 0, capfd.readouterr().err
    return json.loads(capfd.readouterr().out)


def change(file: Path, **keys: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | keys))


def test_a_person_sees_the_text_and_what_it_cost(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--checkpoint", str(checkpoint), "--max-new-tokens", "30")
    process = start(
        tmp_path, *options, "--prompt", "def ", "--compare", script="launch/generate.py"
    )
    code, out, err = finish(process)
    assert code == 0, err
    for words in ("prompt of 4 tokens", "30 new tokens", "drafts accepted", "speed-up"):
        assert words in err
    assert "\n" not in err
    text = printed_json(capfd, *options, "--prompt", "def ")["text"]
    assert out == f"def {text}\n"
    assert command(*options, "--prompt", "def ", "--no-echo") == 0
    assert capfd.readouterr().out == f"{text}\n"


def test_json_says_the_same_whatever_the_decoding(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompt.txt").write_bytes("Grüße".encode())
    options = ("--checkpoint", checkpoint, "--prompt-file", tmp_path / "prompt.txt")
    plain = printed_json(capfd, *options)
    assert plain["prompt"] == "Grüße" and plain["prompt_tokens"] == 7
    assert plain["ended"] or plain["new_tokens"] == LONGEST - 7  # what there is room for
    text = ByteTokenizer().decode(np.array(plain["tokens"])).decode(errors="replace")
    assert plain["text"] == text
    assert plain["acceptance"] == []
    drafted = printed_json(capfd, *options, "--speculative")
    assert drafted["tokens"] == plain["tokens"]
    assert len(drafted["acceptance"]) == 2 and drafted["tokens_per_forward"] >= 1
    both = printed_json(capfd, *options, "--compare", "--dtype", "float64")
    assert both["speed_up"] == pytest.approx(
        both["tokens_per_second"] / both["greedy"]["tokens_per_second"]
    )
    warm = ("--temperature", 1.5, "--top-p", 0.9, "--seed")
    first, again, other = (printed_json(capfd, *options, *warm, s)["tokens"] for s in (1, 1, 2))
    assert first == again != other
    alone = printed_json(capfd, "--checkpoint", checkpoint, "--max-new-tokens", 3)
    assert alone["prompt"] == "" and alone["prompt_tokens"] == 1


def test_the_greedy_text_is_that_of_transformers(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ours = printed_json(capfd, "--checkpoint", checkpoint, "--prompt", "import os", "--speculative")
    theirs = DeepseekV3ForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    prompt_1T = torch.tensor([list(b"import os")])
    tokens = theirs.generate(prompt_1T, do_sample=False, max_length=LONGEST)[0, 9:].tolist()
    ended = ours["ended"] * [ByteTokenizer().end_of_document]
    assert ours["tokens"] + ended == tokens
    assert len(set(tokens)) > 10


def test_many_prompts_are_answered_as_each_alone(
    checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    texts = ["def ", "Grüße", " x\ty"]
    options = ("--checkpoint", checkpoint, "--max-new-tokens", 6)
    alone = [printed_json(capfd, *options, "--prompt", text) for text in texts]

    def answers(*more: object) -> list[dict]:
        assert command(*options, *more, "--json") == 0
        return [json.loads(line) for line in capfd.readouterr().out.splitlines()]

    repeated = [word for text in texts for word in ("--prompt", text)]
    (tmp_path / "lines.txt").write_bytes("\r\n\n".join(texts).encode())
    objects = "".join(json.dumps({"n": 1, "question": text}) + "\n\n" for text in texts)
    (tmp_path / "objects.jsonl").write_text(objects)
    for given in (
        repeated,
        ["--prompts", tmp_path / "lines.txt"],
        ["--prompts", tmp_path / "objects.jsonl", "--prompt-field", "question"],
    ):
        found = answers(*given)
        assert [one["prompt"] for one in found] == texts
        assert [one["tokens"] for one in found] == [one["tokens"] for one in alone]
        assert all(one.keys() == other.keys() for one, other in zip(found, alone))
    for size in (1, 2):
        assert [one["tokens"] for one in answers(*repeated, "--batch-size", size)] == [
            one["tokens"] for one in alone
        ]
    # Samples do not depend on the other prompts, and a prompt that comes again has another.
    warm = ("--temperature", 1.5, "--seed")
    first, second = answers("--prompt", "x", "--prompt", "x", *warm, 7)
    assert first["tokens"] != second["tokens"]
    assert answers("--prompt", "x", *warm, 8)[0]["tokens"] == second["tokens"]

    assert command(*options, *repeated) == 0
    printed = capfd.readouterr()
    lines = [f"--- prompt {n + 1} of 3 ---\n{texts[n]}{alone[n]['text']}\n" for n in range(3)]
    assert printed.out == "".join(lines) and printed.err.count("6 new tokens") == 3
    assert "all 3 prompts: 18 new tokens in" in printed.err


def test_a_text_that_ends_for_want_of_room_says_so(
    checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command("--checkpoint", checkpoint, "--prompt", "abc") == 0
    err = capfd.readouterr().err
    assert f"max_position_embeddings is {LONGEST}" in err and "data.sequence_length" in err
    options = ("--checkpoint", checkpoint, "--prompt", "abc")
    assert printed_json(capfd, *options)["limit"] == "max_position_embeddings"
    fewer = printed_json(capfd, *options, "--max-new-tokens", 3)
    assert fewer["limit"] == "max_new_tokens" and not fewer["ended"]


def test_the_first_text_is_shown_as_it_comes_and_later_ones_after_it(checkpoint: Path) -> None:
    model = load_text_model(checkpoint, None, torch.float32, False, lambda done, total: None)
    asked = [Question(b"x", [n], new, "max_new_tokens") for n, new in enumerate((6, 3, 8), 1)]
    seen: list[str] = []
    when: list[int] = []

    class Log:
        def start(self, question: Question) -> None:
            seen.append(f"start {question.tokens}")

        def push(self, token: int) -> None:
            seen.append("token")
            when.append(model.part.layers["0"].self_attn.cache.all.reading.position_T[0])

        def finish(self, question: Question, made: Answer, plain: Answer | None) -> None:
            seen.append(f"finish {len(made.tokens)}")

    answer_all(replace(model, ends=frozenset()), asked, Method(), Log())
    lines = [
        (f"start {[n]}", *["token"] * new, f"finish {new}") for n, new in zip((1, 2, 3), (6, 3, 8))
    ]
    assert seen == [word for line in lines for word in line]
    # The first is shown token by token; the second had to wait for its end, the third for it too.
    assert when[:10] == [0, 1, 2, 3, 4, 5, 5, 5, 5, 5]


def test_as_many_texts_at_once_as_memory_has_room_for(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_text_model(checkpoint, None, torch.float32, False, lambda done, total: None)
    asked = [Question(b"x", [1] * n, 5, "max_new_tokens") for n in (6, 3, 6, 2)]
    assert session.slots(model, asked, None) == 4 and session.slots(model, asked, 3) == 3
    for texts, found in ((2.5, 2), (0.5, 1)):  # it must go on with one at least
        memory = int(4 * texts * model.cache_bytes(10))
        monkeypatch.setattr(session, "machine_memory", lambda memory=memory: memory)
        assert session.slots(model, asked, None) == found
        assert session.slots(model, asked, 3) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_obeys_neither_prompt_nor_text(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    prompt, text = "[red]\x1b[2J\u202eé\n:smile: x", "a\x1b]0;t\x07\r\tb\n\u2067[bold]\x9b日"
    model = load_text_model(checkpoint, None, torch.float32, False, lambda done, total: None)
    question = Question(prompt.encode(), list(prompt.encode()), 40, "max_new_tokens")
    monkeypatch.setattr(sys, "stdout", Terminal() if terminal else io.StringIO())
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = TextOutput(model, echo=True, count=1)
    output.start(question)
    for token in text.encode():
        output.push(token)
    output.finish(question, Answer(9, (), None, 1.0, 1.0, 0, Counts()), None)
    shown = prompt + text + "\n"
    if terminal:
        shown = "\x1b[2m[red]\\x1b[2J\\u202eé\x1b[0m\n\x1b[2m:smile: x\x1b[0m"
        shown += "a\\x1b]0;t\\x07\\r\tb\n\\u2067[bold]\\x9b日\n"
    assert sys.stdout.getvalue() == shown


def test_special_tokens_are_those_of_the_checkpoint(
    changed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    options = ("--checkpoint", changed, "--prompt", "x", "--max-new-tokens", 20)
    tokens = printed_json(capfd, *options)["tokens"]
    change(changed / "generation_config.json", eos_token_id=[tokens[6], 300])
    stopped = printed_json(capfd, *options)
    assert stopped["ended"] and stopped["tokens"] == tokens[: tokens.index(tokens[6])]
    change(changed / "generation_config.json", bos_token_id=65)
    model = load_text_model(changed, None, torch.float32, False, lambda done, total: None)
    assert model.prompt_tokens("x") == [ord("x")] and model.prompt_tokens("") == [65]
    change(changed / "tokenizer_config.json", add_bos_token=True)
    model = load_text_model(changed, None, torch.float32, False, lambda done, total: None)
    assert model.prompt_tokens("x") == [65, ord("x")] and model.prompt_tokens("") == [65]


WRONG_OPTIONS = {
    "--temperature -1": "--temperature must be 0 or more",
    "--temperature 1 --top-p 0": "--top-p must be more than 0 and at most 1, got 0.0",
    "--top-p 0.5": "--top-p needs a --temperature above 0",
    "--seed 3": "--seed needs a --temperature above 0",
    "--temperature 0.7 --speculative": "--speculative is greedy: leave out --temperature 0.7",
    "--batch-size 0": "--batch-size must be 1 or more, got 0",
    "--batch-size 2 --compare": "one text at a time: leave out --batch-size 2, or --compare",
    "--dtype bfloat16 --speculative": "leave out --dtype bfloat16, or --speculative",
    "--max-new-tokens 0": "--max-new-tokens must be 1 or more",
    "--max-new-tokens 40": "max_position_embeddings = 40 of config.json, which a run sets to its "
    "data.sequence_length: ask for at most 39",
    f"--prompt {'x' * 40}": "shorten the prompt",
    "--prompt-file nowhere": "--prompt-file nowhere: cannot be read (No such file",
    "--prompt x --prompt-file y": "not allowed with argument",
    "--prompts /dev/zero": "--prompts /dev/zero: is a device, where a file is needed",
    "--prompt-field x": "--prompt-field needs --prompts FILE.jsonl",
    "--prompts setup.cfg --prompt-field x": "is not named .jsonl",
    "--compare --speculative": "leave out --speculative",
    "--json --no-echo": "--no-echo is for text",
    "--prompt a --prompt " + "x" * 40: "prompt 2 of 2: 40 tokens of prompt",
}


@pytest.mark.parametrize("options", WRONG_OPTIONS)
def test_wrong_arguments_end_in_one_line(
    options: str, checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    try:
        code = command("--checkpoint", checkpoint, *options.split())
    except SystemExit as end:  # what argparse finds
        code = end.code
    printed = capfd.readouterr()
    assert code == 2 and printed.out == "" and printed.err.count("\n") == 1
    assert WRONG_OPTIONS[options] in printed.err


def refusal(capfd: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    assert command(*arguments) == code
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err


def test_what_a_checkpoint_lacks_is_said(
    changed: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = save(tmp_path / "plain", replace(MODEL, mtp=MTPConfig(0)))
    assert "has no MTP module" in refusal(capfd, 1, "--checkpoint", plain, "--speculative")
    missing = tmp_path / "none"
    assert "no such folder" in refusal(capfd, 1, "--checkpoint", missing)
    (changed / "tokenizer.json").unlink()
    assert command("--checkpoint", changed, "--max-new-tokens", 2) == 0  # bytes
    capfd.readouterr()
    wide = save(tmp_path / "wide", replace(MODEL, vocab_size=260))
    tokenizer = wide / "tokenizer.json"
    assert command("--checkpoint", wide, "--max-new-tokens", 2) == 0
    tokenizer.rename(tmp_path / "tokenizer.json")
    capfd.readouterr()
    assert "give --tokenizer" in refusal(capfd, 2, "--checkpoint", wide)


def test_weights_that_are_not_finite_are_refused(
    changed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name, (file,) = "model.norm.weight", changed.glob("*.safetensors")
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    start, end = json.loads(content[8 : 8 + length])[name]["data_offsets"]
    content[8 + length + start : 12 + length + start] = struct.pack("<f", float("inf"))
    file.write_bytes(content)
    err = refusal(capfd, 1, "--checkpoint", changed)
    assert str(file) in err and name in err and "not finite" in err
    # Weights that are finite, but too large to compute with.
    content[8 + length + start : 8 + length + end] = struct.pack("<f", 3e38) * ((end - start) // 4)
    file.write_bytes(content)
    for more in ((), ("--speculative",), ("--temperature", 1)):
        assert command("--checkpoint", changed, "--prompt", "x", *more, "--no-echo") == 1
        err = capfd.readouterr().err
        assert err.count("\n") == 1 and "logits are not finite" in err
    assert command("--checkpoint", changed, "--prompt", "a", "--prompt", "b", "--json") == 1
    assert "prompt 1 of 2: the model's logits" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("file", "keys", "words"),
    [
        ("generation_config.json", {"bos_token_id": 257}, "bos_token_id is 257"),
        ("generation_config.json", {"bos_token_id": [1]}, "bos_token_id is [1]"),
        ("generation_config.json", {"eos_token_id": [True]}, "eos_token_id is [True]"),
        ("tokenizer_config.json", {"add_bos_token": True}, "bos_token_id"),
    ],
)
def test_special_tokens_that_are_none_are_refused_before_weights_are_read(
    changed: Path, capfd: pytest.CaptureFixture[str], file: str, keys: dict, words: str
) -> None:
    change(changed / file, **keys)
    assert words in refusal(capfd, 1, "--checkpoint", changed)


def test_a_text_longer_than_all_memory_is_refused(
    changed: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(changed / "config.json", max_position_embeddings=10**12)
    err = refusal(capfd, 2, "--checkpoint", changed, "--max-new-tokens", 10**11)
    assert "GB" in err and "--max-new-tokens" in err


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_an_output_that_is_full_ends_in_one_line(
    checkpoint: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert command("--checkpoint", checkpoint, "--prompt", "x", *more) == 1
    assert capfd.readouterr().err == "generate: standard output: No space left on device\n"
