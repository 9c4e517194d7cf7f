"""Quality of text before it is prepared: what is left out and why, what is said of the rest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.commands import ROOT
from tests.test_prepare import content, documents, run
from trainer.data.shards.index import read_index
from trainer.prepare import prepare as preparing
from trainer.prepare import source as reading
from trainer.prepare.quality import first_pass
from trainer.prepare.quality.examine import Examiner
from trainer.prepare.quality.words import words_of

SPLITS = ("training", "validation")


def text(seed: int, words: int = 120) -> str:
    """Words that no other seed gives in this order."""
    return " ".join(f"w{(seed * 7919 + n * n * 31 + n) % 9973}" for n in range(words)) + ".\n"


def changed(original: str, words: int) -> str:
    """With some of its last words replaced, next to each other."""
    some = original.split(" ")
    return " ".join([*some[:-words], *("changed" + "x" * n for n in range(words))])


ORIGINAL = {n: text(n) for n in range(40)}
REPEATS = {
    10: ORIGINAL[3],
    11: ORIGINAL[3].replace(" ", "\r\n", 1).replace("\r\n", " ", 1),
    20: ORIGINAL[5].replace("\n", "\r\n"),
    25: changed(ORIGINAL[7], 4),  # 112 shingles of 116 + 4 are the same
    30: changed(ORIGINAL[7], 60),
    35: "?!",
    36: "?!",
    37: "!?",
}
TEXTS = [REPEATS.get(n, ORIGINAL[n]) for n in range(40)]
EXACT, NEAR = [10, 11, 20, 36], [25]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK_BYTES", 3000)


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Two files of JSON lines."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for part in range(2):
        lines = [json.dumps({"text": each}) for each in TEXTS[part * 20 : part * 20 + 20]]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def dropped(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]


def figures(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = read_index(out).about["quality"]
    return found


@pytest.mark.parametrize("dedup", ["exact", "near"])
def test_repeats_and_only_those_are_left_out(texts: Path, tmp_path: Path, dedup: str) -> None:
    """And what is held out stays held out, since documents keep their numbers."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    options = ("--validation-fraction", "0.3", "--workers", "0")
    assert run(texts, "--out", whole, *options) == 0
    assert run(texts, "--out", out, *options, "--dedup", dedup) == 0
    wanted = sorted(EXACT + (NEAR if dedup == "near" else []))
    assert [each["number"] for each in dropped(out)] == wanted
    by_number = {each["number"]: each for each in dropped(out)}
    assert by_number[20]["reason"] == "exact" and by_number[20]["of_line"] == 6
    assert by_number[20]["file"] == str(texts / "1.jsonl") and by_number[20]["line"] == 1
    assert by_number[20]["of_file"] == str(texts / "0.jsonl")
    if dedup == "near":
        assert by_number[25]["reason"] == "near" and by_number[25]["of_line"] == 8
        assert 0.85 < by_number[25]["similarity"] < 1
    kept = [each.encode() for n, each in enumerate(TEXTS) if n not in wanted]
    assert sorted(each for split in SPLITS for each in documents(out, split)) == sorted(kept)
    once = {each for n, each in enumerate(kept) if TEXTS.count(each.decode()) == 1}
    for split in SPLITS:
        before = [each for each in documents(whole, split) if each in once]
        assert [each for each in documents(out, split) if each in once] == before
    counts = figures(out)["dropped"]
    assert counts["exact"]["documents"] == len(EXACT)
    assert counts["exact"]["bytes"] == sum(len(TEXTS[n].encode()) for n in EXACT)


def test_similarity_that_is_asked_for_decides(texts: Path, tmp_path: Path) -> None:
    options = ("--workers", "0", "--validation-fraction", "0", "--dedup", "near", "--near")
    for near, wanted in (("0.99", EXACT), ("0.5", [*EXACT, 25])):
        assert run(texts, "--out", tmp_path / near, *options, near) == 0
        assert [each["number"] for each in dropped(tmp_path / near)] == sorted(wanted)


def test_a_vocabulary_is_learnt_from_what_is_kept(texts: Path, tmp_path: Path) -> None:
    only = tmp_path / "only.jsonl"
    kept = [json.dumps({"text": each}) for n, each in enumerate(TEXTS) if n not in EXACT]
    only.write_text("\n".join(kept))
    options = ("--train-tokenizer", "300", "--workers", "0", "--validation-fraction", "0")
    assert run(texts, "--out", tmp_path / "a", "--dedup", "exact", *options) == 0
    assert run(only, "--out", tmp_path / "b", *options) == 0
    a, b = (tmp_path / name / "tokenizer" / "tokenizer.json" for name in "ab")
    assert a.read_bytes() == b.read_bytes()


def test_workers_change_no_byte(texts: Path, tmp_path: Path) -> None:
    evaluation = tmp_path / "evaluation.txt"
    evaluation.write_text(ORIGINAL[9])
    options = ("--validation-fraction", "0.3", "--train-tokenizer", "300")
    options += ("--dedup", "near", "--decontaminate", evaluation)
    for workers in (0, 3):
        out = tmp_path / str(workers)
        assert run(texts, "--out", out, "--workers", workers, *options, "--report", f"{out}.h") == 0
    assert content(tmp_path / "0") == content(tmp_path / "3")
    pages = [(tmp_path / f"{n}.h").read_text().replace(str(tmp_path / f"{n}"), "") for n in (0, 3)]
    assert pages[0] == pages[1]


CRASH = OSError(28, "No space left on device", "somewhere")


def note_process(path: Path, numbers: Sequence[int], documents: Sequence[bytes]) -> None:
    """Work for a process."""
    path.write_text(str(os.getpid()))


def test_workers_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "process"
    code = f"""if True:
        import time
        from functools import partial
        from pathlib import Path
        from tests.test_quality import note_process
        from trainer.prepare.source import Chunk, Place, Skipped
        from trainer.prepare.workers import Workers
        work = partial(note_process, Path({str(note)!r}))
        chunk = Chunk([0], [b"text"], [(0, 0)], Place(), 0, Skipped())
        for _ in Workers(1, partial(int), work, work).results(iter([chunk] * 9)):
            time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent:
        wait_for(lambda: note.exists() and note.read_text() != "")
        parent.kill()
    worker = Path("/proc", note.read_text())
    wait_for(lambda: not worker.exists() or ") Z " in (worker / "stat").read_text())


def wait_for(happened: Callable[[], bool]) -> None:
    """Up to a minute."""
    for _ in range(600):
        if happened():
            return
        time.sleep(0.1)
    raise AssertionError("did not happen in a minute")


@pytest.mark.parametrize("where", ["first pass", "broken file", "second pass"])
def test_what_was_interrupted_goes_on(
    texts: Path, tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--validation-fraction", "0.3", "--workers", "0", "--dedup", "near", "--skip-bad")
    (texts / "0.jsonl").write_text("{}\n" + (texts / "0.jsonl").read_text())
    assert run(texts, "--out", tmp_path / "whole", *options) == 0
    out, looked = tmp_path / "out", []
    examine, encoded = Examiner.examine, preparing._encoded

    def counted(self: Examiner, numbers: list[int], texts: list[bytes]) -> Any:
        looked.extend(numbers)
        if where != "second pass" and len(looked) > 20:
            raise CRASH
        return examine(self, numbers, texts)

    def crash(*arguments: Any) -> Iterator[Any]:
        yield next(iter(encoded(*arguments)))
        raise CRASH

    with monkeypatch.context() as patch:
        patch.setattr(Examiner, "examine", counted)
        patch.setattr(preparing, "_encoded", crash)
        assert run(texts, "--out", out, *options) == 1
    part = out / first_pass.EXAMINED_FILE
    assert part.exists() == (where != "second pass")
    if where == "broken file":
        part.write_bytes(part.read_bytes()[:-500] + bytes(500) + b"half")
    before, looked[:] = max(looked), []
    where = "second pass"  # nothing crashes any more
    with monkeypatch.context() as patch:
        patch.setattr(Examiner, "examine", counted)
        assert run(texts, "--out", out, *options) == 0
    assert (looked[:1] or [40])[0] > 0 and (part.exists(), before > 0) == (False, True)
    assert content(out) == content(tmp_path / "whole")


def test_other_options_do_not_go_on_with_what_was_found(
    texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "out", ("--workers", "0", "--validation-fraction", "0")
    encoded = preparing._encoded

    def crash(*arguments: Any) -> Iterator[Any]:
        yield next(iter(encoded(*arguments)))
        raise CRASH

    with monkeypatch.context() as patch:
        patch.setattr(preparing, "_encoded", crash)
        patch.setattr(preparing, "_SAVE_EVERY", 0.0)
        assert run(texts, "--out", out, *options, "--dedup", "exact") == 1
    capsys.readouterr()
    assert run(texts, "--out", out, *options) == 1
    assert "progress.json" in capsys.readouterr().err
    assert run(texts, "--out", out, *options, "--dedup", "near") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "quality.json" in line and "--overwrite" in line
    assert run(texts, "--out", out, *options, "--dedup", "near", "--overwrite") == 0
    assert len(dropped(out)) == len(EXACT) + len(NEAR)


def test_words_of_an_evaluation_text_are_found_and_named(texts: Path, tmp_path: Path) -> None:
    """Whatever their case, marks and line breaks; 12 in a row are not enough, and a document that
    is left out for them is none that a later one repeats."""
    questions = tmp_path / "questions.jsonl"
    words = [f"Asked{n}" for n in range(40)]
    lines = [{"q": "Too short."}, {"q": " ".join(words)}]
    questions.write_text("\n".join(map(json.dumps, lines)))
    hidden = "One line.\nAnother: " + ",\n".join(words[20:33]).upper() + "! " + text(100)
    like = changed(hidden, 1).replace("ASKED25", "other")
    (texts / "0.jsonl").write_text(json.dumps({"text": " ".join(words[5:17]) + " end"}) + "\n")
    (texts / "2.txt").write_text(hidden)
    (texts / "3.txt").write_text(like)
    out = tmp_path / "out"
    options = ("--decontaminate", questions, "--evaluation-field", "q", "--workers", "0")
    options += ("--validation-fraction", "0")
    assert run(texts, "--out", out, *options, "--dedup", "near") == 0
    (found,) = [each for each in dropped(out) if each["reason"] == "evaluation"]
    assert (found["file"], found["line"]) == (str(texts / "2.txt"), 2)
    assert (found["of_file"], found["of_line"]) == (str(questions), 2)
    assert found["words"] == " ".join(words[20:33]).lower()
    kept = documents(out, "training")
    assert like.encode() in kept and hidden.encode() not in kept
    evaluation = figures(out)["evaluation"]
    assert evaluation == {"texts": 2, "too_short": 1, "ngrams": 28, "found": 1, "common": 0}
    assert run(texts, "--out", out, *options, "--ngram", "12", "--overwrite") == 0
    assert len(dropped(out)) == 2


def test_words_that_many_documents_have_are_no_sign(texts: Path, tmp_path: Path) -> None:
    """A licence is passed over, but not what else of an evaluation text a document has."""
    licence = " ".join(f"licence{n}" for n in range(20))
    question = " ".join(f"asked{n}" for n in range(20))
    evaluation, out = tmp_path / "evaluation.txt", tmp_path / "out"
    evaluation.write_text(f"{licence} and then {question}")
    for n in range(6):
        body = question if n == 4 else ORIGINAL[n]
        (texts / f"{n}.txt").write_text(f"{licence}\n{body} {n}")
    options = ("--decontaminate", evaluation, "--workers", "0", "--validation-fraction", "0")
    assert run(texts, "--out", out, *options, "--common", "5") == 0
    (found,) = dropped(out)
    assert (found["file"], found["line"]) == (str(texts / "4.txt"), 2)
    assert found["words"].startswith("asked0 asked1")
    assert figures(out)["evaluation"]["common"] == 20 - 12
    assert run(texts, "--out", out, *options, "--common", "6", "--overwrite") == 0
    assert len(dropped(out)) == 6


def test_words_are_found_in_scripts_without_blanks() -> None:
    assert words_of("Naïve x_1, 数据! Это\n") == ["naïve", "x_1", "数", "据", "это"]


def test_statistics_of_a_known_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "texts", tmp_path / "out"
    folder.mkdir()
    known = [
        "ab 12.\n",
        "Привет",
        "数据ですね",
        "The house is near the river and the old bridge.\n",
    ]
    for n, each in enumerate([*known, known[-1]]):
        (folder / f"{n}.txt").write_text(each)
    options = ("--validation-fraction", "0", "--workers", "0", "--dedup", "exact")
    assert run(folder, "--out", out, *options, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert figures(out) == {k: v for k, v in said["quality"].items() if k != "seconds"}
    kept, lengths = said["quality"]["kept"], [len(each.encode()) for each in known]
    assert said["quality"]["read"] == {"documents": 5, "bytes": sum(lengths) + lengths[-1]}
    assert (kept["documents"], kept["bytes"]) == (4, sum(lengths))
    examples = json.loads((out / "quality.json").read_text())["examples"]
    assert sorted(each["text"] for each in examples["samples"]) == sorted(known)
    assert [each["bytes"] for each in examples["largest"]] == sorted(lengths, reverse=True)
    assert kept["characters"] == {
        "Latin": 39, "CJK": 5, "Cyrillic": 6, "other letters": 0, "digits": 2, "punctuation": 2,
        "blanks": 12, "other": 0,
    }  # fmt: skip
    assert kept["bytes_of_documents"]["50"] == sorted(lengths)[1]
    assert kept["bytes_of_documents"]["100"] == max(lengths)
    assert [each["from"] for each in kept["histogram"] if each["documents"]] == [4, 8, 32]
    assert said["about"]["tokens_of_documents"]["training"]["0"] == min(lengths) + 1
    if kept["languages"]:  # py3langid is there
        assert {"en", "ja"} <= set(kept["languages"]) and sum(kept["languages"].values()) == 4


class Page(HTMLParser):
    """Fails where elements are not closed in their order."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.data = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [str(value) for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"] and not self.data:
            self.data = data


def test_the_report_is_one_page_that_needs_nothing_else(texts: Path, tmp_path: Path) -> None:
    hostile = texts / "3<" / "script><script>alert(1).txt"
    hostile.parent.mkdir()
    hostile.write_text(text(50))
    out, report = tmp_path / "out", tmp_path / "made" / "page.html"
    options = ("--dedup", "near", "--decontaminate", hostile, "--workers", "0")
    options += ("--validation-fraction", "0")
    assert run(texts, "--out", out, "--report", report, *options) == 0
    written = report.read_text()
    page = Page()
    page.feed(written)
    page.close()
    assert not page.open and len(set(page.ids)) == len(page.ids)
    assert "<script>alert" not in written and written.count("</script>") == 2
    assert not re.search(
        r"""(src|href)\s*=\s*["']|https?://|@import|url\(|fetch\(""", _code(written)
    )
    used = set(re.findall(r"""\bat\(["'](\w[\w-]*)["']\)""", written))
    assert used <= set(page.ids)
    data = json.loads(page.data)
    assert data["figures"] == figures(out)
    examples = data["examples"]["dropped"]
    assert [each["number"] for each in examples["near"]] == NEAR
    assert [each["number"] for each in examples["exact"]] == EXACT
    assert examples["evaluation"][0]["file"] == str(hostile)
    assert len(data["examples"]["samples"]) == 8


def _code(page: str) -> str:
    """Without the data, which may say anything."""
    start = page.index('id="found">')
    return page[:start] + page[page.index("</script>", start) :]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--near", "0.9"), "--near has no effect without --dedup near"),
        (("--ngram", "8"), "--ngram has no effect without --decontaminate"),
        (("--decontaminate", "nowhere.txt"), "--decontaminate nowhere.txt: is no file"),
        (("--decontaminate", "short.txt"), "give a smaller --ngram"),
        (
            ("--decontaminate", "bad.jsonl"),
            "bad.jsonl, line 1: no field 'text'; set --evaluation-field",
        ),
        (("--report", "/dev/null/page.html"), "--report"),
        (("--dedup", "near"), "pip install 'tandem[quality]'"),
    ],
)
def test_what_cannot_be_looked_for_is_one_line(
    options: tuple[str, ...],
    words: str,
    texts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(texts.parent)
    monkeypatch.setitem(sys.modules, "datasketch", None)
    Path("short.txt").write_text("A few words.")
    Path("bad.jsonl").write_text('{"q": ""}\n')
    try:
        code = run("texts", "--out", "out", "--workers", "0", *options)
    except SystemExit as end:
        code = int(str(end.code))
    assert code in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not list(Path("out").glob("*.tokens"))
