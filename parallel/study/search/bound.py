"""A lower bound on the makespan of any table on a chain's placement: what no order can avoid.

For each rank r, with a the first of its stages and b the last, the bound adds up five parts; the
largest sum over the ranks is the bound. A stage's F takes no less from its input to its output than
alone, or in its quickest pair; the same for the input gradient. So the way of a micro-batch takes
at least the sum of these, and of the transits.

Start. The first item of r is an F that has come down from stage 0; r idles before it.

Window. No B or I starts on r before a micro-batch has passed all stages forward and its gradient
has come back to b. Until then r can only run Fs, without a pair, or idle. Let u be the number of Fs
that r runs unpaired in the whole step. What of the window u Fs do not fill is idle.

End. When the last F of r has ended, its micro-batch still goes forward through the stages after b,
or more, and back through all, and stage 0's weight gradients follow. Until then r has only the
backwards that no pair holds, as many as unpaired Fs, u. In the last part of the end, after its last
backward, it has only their W: the gradient still goes back from a to stage 0.

Work. All F, I and W of r, less what pairs save. Give every F and every B of r half a saving, so
that no pair saves more than its two halves together. Then n pairs save no more than the n largest
halves of Fs and of Bs. There are as many pairs as Fs that are not unpaired.

After. The optimizer.

r's bound is the least over u of the sum: more unpaired Fs fill the window and the end, fewer save
more. Neither window nor end can take more of them than the cap, as all Fs of the window are still
held at its end, and whatever ends in the end was held at its start. Window and end do not overlap,
for the last F comes after the first backward; only if there are no pairs, and the cap lets all Fs
come first, can they, and then the longer idle time of the two counts.

All of this holds for any order, and for two opposite flows whether or not one is the other's mirror
image. Channels that are kept busy only add to it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from math import inf

from parallel.study.search.chain import Chain


def lower_bound(chain: Chain) -> float:
    """The makespan below which no table on the chain's placement and under its cap can be."""
    return max(_Bound(chain).of(rank) for rank in range(chain.ranks))


class _Bound:
    """How quickly micro-batches can go through a chain, and the bound of each rank."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        backward = [i + w for i, w in zip(chain.input_grad, chain.weight_grad)]
        self._down, self._up, self._whole = (
            list(each) for each in (chain.forward, chain.input_grad, backward)
        )
        for (f, b), cost in chain.pair.items():
            self._down[f] = min(self._down[f], cost)
            self._up[b] = min(self._up[b], cost)
            self._whole[b] = min(self._whole[b], cost)

    def of(self, rank: int) -> float:
        """The bound that the work of one rank gives."""
        chain, stages = self.chain, self.chain.stages_of(rank)
        first, last = stages[0], stages[-1]
        start = sum(self._down[:first]) + sum(chain.transit[:first])
        window = sum(self._down) + sum(self._up[last + 1 :]) - start
        window += sum(chain.transit) + sum(chain.transit[last:])
        drained = self._whole[0] + sum(self._up[1:first]) if first else 0.0
        drained += sum(chain.transit[:first])
        tail = sum(self._down[last + 1 :]) + sum(self._up[1:]) + self._whole[0]
        tail += sum(chain.transit) + sum(chain.transit[last:])
        work = chain.micro_batches * sum(
            chain.forward[s] + chain.input_grad[s] + chain.weight_grad[s] for s in stages
        )
        return (
            start + work + self._idle_less_saved(stages, window, tail, drained) + chain.after[rank]
        )

    def _idle_less_saved(
        self, stages: list[int], window: float, tail: float, drained: float
    ) -> float:
        """The least over all numbers of unpaired forwards."""
        chain, count = self.chain, self.chain.micro_batches

        def costliest(costs: Iterable[float]) -> list[float]:
            """The sum of the n largest, each `count` times there, by n."""
            every = sorted([cost for cost in costs for _ in range(count)], reverse=True)
            return list(accumulate(every, initial=0.0))

        forwards = costliest(chain.forward[s] for s in stages)
        weights = costliest(chain.weight_grad[s] for s in stages)
        backwards = costliest(chain.input_grad[s] + chain.weight_grad[s] for s in stages)
        of_forward, of_backward = map(costliest, self._halves(stages))
        everything, least = len(stages) * count, inf
        for unpaired in range(everything + 1):
            pairs = everything - unpaired
            held = min(unpaired, chain.cap)
            in_window = max(0.0, window - forwards[held])
            in_end = max(0.0, tail - backwards[held], drained - weights[held])
            # Without pairs, the last F may come before the first backward.
            apart = pairs or chain.cap < everything
            idle = in_window + in_end if apart else max(in_window, in_end)
            least = min(least, idle - of_forward[pairs] - of_backward[pairs])
        return least

    def _halves(self, stages: list[int]) -> tuple[list[float], list[float]]:
        """By stage, parts of savings for its F and its B: no pair saves more than its two.

        Where savings are sums of what an F and what a B saves, no pair saves less, either.
        """
        saving, count = self.chain.saving, len(stages)
        mean = sum(saving(f, b) for f in stages for b in stages) / count**2
        backward = [sum(saving(f, b) for f in stages) / count - mean / 2 for b in stages]
        forward = [max(saving(f, b) - own for b, own in zip(stages, backward)) for f in stages]
        return forward, backward
