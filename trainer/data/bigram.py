"""The token-bigram model: what a trained model must beat on the same held-out text."""

import numpy as np
from numpy.typing import NDArray

from trainer.data.corpus import Split
from trainer.data.tokens import Tokenizer, Tokens, is_of_bytes


def byte_bigram_entropy(
    training: Split, windows: Tokens, sequence_length: int, tokenizer: Tokenizer
) -> float | None:
    """Mean nats per byte of the bigram model of `training` on held-out windows [n, at least S + 1].

    None where the tokens are not bytes: the memory is the square of the vocabulary.
    """
    if not is_of_bytes(tokenizer):
        return None
    counts = count_bigrams(training, tokenizer.vocabulary_size)
    return bigram_cross_entropy(bigram_log_probabilities(counts), windows, sequence_length)


def count_bigrams(split: Split, vocabulary_size: int) -> NDArray[np.int64]:
    """How often token b follows a: counts [a, b] over the split in stored order.

    The vocabulary must be small (bytes): the counts are a dense square.
    """
    counts = np.zeros(vocabulary_size * vocabulary_size, dtype=np.int64)
    before: Tokens | None = None  # [1] the last token of the block before
    for block in split.blocks():
        joined = block if before is None else np.concatenate((before, block))
        pairs = joined[:-1].astype(np.int64) * vocabulary_size + joined[1:]
        counts += np.bincount(pairs, minlength=counts.size)
        before = block[-1:]
    return counts.reshape(vocabulary_size, vocabulary_size)


def bigram_log_probabilities(
    counts: NDArray[np.int64], backoff: float = 1.0
) -> NDArray[np.float64]:
    """log p(b | a) [a, b] in nats, smoothed by the unigram, itself smoothed by one count each.

    With n_ab the counts, V tokens and k = `backoff`, the weight of the unigram in counts:
    q(b) = (n_b + 1) / (n + V), p(b | a) = (n_ab + k V q(b)) / (n_a + k V),
    n_a = sum over b of n_ab, n_b = sum over a of n_ab, n = sum of all. k V q(b) is add-alpha
    smoothing whose alpha, k on average, follows the unigram.
    """
    vocabulary_size = counts.shape[0]
    unigram = (counts.sum(axis=0) + 1.0) / (counts.sum() + vocabulary_size)  # [b]
    weight = backoff * vocabulary_size
    smoothed = counts + weight * unigram  # [a, b]
    return np.log(smoothed / (counts.sum(axis=1, keepdims=True) + weight))


def bigram_cross_entropy(
    log_probabilities: NDArray[np.float64], windows: Tokens, sequence_length: int
) -> float:
    """Mean nats per token of the targets windows[:, 1 : S + 1] given windows[:, 0 : S].

    windows [n, at least S + 1] as from validation_windows: the targets of the model's own loss.
    """
    given = windows[:, :sequence_length]
    target = windows[:, 1 : sequence_length + 1]
    return -float(log_probabilities[given, target].mean())
