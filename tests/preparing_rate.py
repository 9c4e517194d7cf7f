"""How fast text is prepared, beside plain batch encoding by `tokenizers` of the same documents,
which are in memory and whose tokens are thrown away: in turns, on all cores.

    python tests/preparing_rate.py --rounds 5 stdlib package:torch
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from trainer.data.bad import stop
from trainer.data.documents import file_documents
from trainer.data.file_tokenizer import FileTokenizer, load_tokenizer
from trainer.prepare.encoder import EncodeOptions
from trainer.prepare.prepare import Preparation, prepare
from trainer.prepare.source import Source
from trainer.prepare.train_tokenizer import train_tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=32768)
    options = parser.parse_args()
    source = Source([None if path == "stdlib" else path for path in options.source], "text")
    texts = [d.text.decode() for f in source.files for d in file_documents(f, "text", stop)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer"
        train_tokenizer(iter([texts]), options.vocabulary, tokenizer)
        print(f"{size:.1f} MB in {len(texts):,} documents, vocabulary {options.vocabulary:,}")
        ratios, rates = [], []
        for number in range(options.rounds):
            start = time.perf_counter()
            loaded = load_tokenizer(str(tokenizer))  # anew: it remembers the words that it has seen
            assert isinstance(loaded, FileTokenizer)
            for first in range(0, len(texts), 256):
                loaded.library.encode_batch_fast(texts[first : first + 256])
            plain = size / (time.perf_counter() - start)
            encode = EncodeOptions(str(tokenizer), 0, 0.005)
            work = Preparation(source, encode, os.cpu_count() or 1, 500_000_000, False)
            start = time.perf_counter()
            prepare(work, Path(folder) / str(number), lambda done, total: None)
            ours = size / (time.perf_counter() - start)
            ratios.append(ours / plain)
            rates.append(ours)
            print(f"plain {plain:.2f} MB/s, prepare {ours:.2f} MB/s: {ratios[-1]:.2f}")
    print(f"median {statistics.median(rates):.2f} MB/s, {statistics.median(ratios):.2f} of plain")


if __name__ == "__main__":
    main()
