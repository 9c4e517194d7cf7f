"""A lower bound on the makespan of any table on a V: what no order of the actions can avoid.

For each rank r, with stages a = r and b = 2P - 1 - r, the bound adds up four parts; the largest
sum over the ranks is the bound.

Start. The first item of r is an F that has come down from stage 0, so r idles before it.

Window. No B or I starts on r before a micro-batch has passed all stages forward and its gradient
has come back to b. Until then r can only run Fs, without a pair, or idle. If u is the number of Fs
that r runs unpaired in the whole step, the part of the window that these do not fill is idle.

End. After the last F of r ends (of stage b, as the F of a comes before it), its micro-batch still
has to go forward through the stages after b, and back through all of them, and stage 0's weight
gradients follow. r can fill this only with backwards that no pair holds. There are as many as
unpaired Fs, u.

Work. All F, I and W of r, less what pairs save: there are 2M - u of them, and none saves more than
(1 - k) x (the F + the B). With u Fs unpaired the most is saved if the most expensive Fs and Bs are
paired.

r's bound is the least over u of the sum: more unpaired Fs fill the window and the end, fewer save
more. Neither can take more of them than the cap, as all Fs of the window are still held at its end,
and the backwards of the end are of activations still held. Window and end do not overlap, for the
last F comes after the first backward; only if there are no pairs, and the cap lets all Fs come
first, can they, and then the longer idle time of the two counts.

A stage's F ends no sooner after its input has come than alone, or in a pair if that is quicker;
the same for I. All of this holds for any hop; channels that are kept busy only add to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import inf

from parallel.schedule.generators.placements import v_placement
from parallel.schedule.table import Action, Kind, Schedule
from parallel.study.costs import CostModel, Costs
from parallel.study.search.words import SEARCHED


def lower_bound(costs: CostModel, ranks: int, micro_batches: int, cap: int) -> float:
    """The makespan below which no table on a V can be, in the unit of `costs`.

    cap: activations of a half-size stage that a rank holds at most.
    """
    bound = _Bound(costs, ranks)
    return max(bound.of(rank, micro_batches, cap) for rank in range(ranks))


def rank_starts(costs: CostModel, ranks: int) -> list[float]:
    """The earliest time at which each rank can start."""
    bound = _Bound(costs, ranks)
    return [bound.way_down(0, rank) for rank in range(ranks)]


class _Bound:
    """The costs of a V, and the bound of each of its ranks."""

    def __init__(self, costs: CostModel, ranks: int) -> None:
        placement = v_placement(ranks)
        made_out = Costs(costs, Schedule(SEARCHED, ranks, ranks, placement, ((),) * ranks))
        self._ranks, self._hop = ranks, costs.hop + costs.transmission
        optimizer = made_out.optimizer
        self._after = [max(optimizer)] * ranks if costs.optimizer_waits else optimizer

        def each(kind: Kind) -> list[float]:
            stages = range(2 * ranks)
            return [made_out.duration(placement[0, s], Action(kind, 0, s, 0)) for s in stages]

        self._forward, self._backward, self._weight_grad = each("F"), each("B"), each("W")
        factor = costs.pair_factor
        self._factor = list(factor) if isinstance(factor, Sequence) else [factor] * ranks
        # How soon after its start a stage's F, and its I, can end: alone, or in a pair.
        self._down, self._up = [], []
        for stage, input_grad in enumerate(each("I")):
            both = stage, 2 * ranks - 1 - stage
            forward, backward = self._forward[stage], self._backward[stage]
            factor = self._factor[min(both)]
            pair = factor * (forward + min(self._backward[s] for s in both))
            self._down.append(min(forward, pair))
            pair = factor * (backward + min(self._forward[s] for s in both))
            self._up.append(min(input_grad, pair))

    def way_down(self, first: int, end: int) -> float:
        """Forward through the stages from `first` on, until `end` can start."""
        hops = end - first - (first < self._ranks <= end)  # the V turns on one rank
        return sum(self._down[first:end]) + hops * self._hop

    def way_up(self, first: int, end: int) -> float:
        """Backward through the stages from `first` on, until `end` can start."""
        hops = first - end - (end < self._ranks <= first)
        return sum(self._up[end + 1 : first + 1]) + hops * self._hop

    def of(self, rank: int, micro_batches: int, cap: int) -> float:
        """The bound that the work of one rank gives."""
        stages = first, last = rank, 2 * self._ranks - 1 - rank
        end = 2 * self._ranks - 1
        start = self.way_down(0, first)
        window = self.way_down(0, end) + self._down[end] + self.way_up(end, last) - start
        tail = self.way_down(last, end) - self._down[last] + self._down[end]
        tail += self.way_up(end, 0) + self._up[0] + self._weight_grad[0]
        forwards = sorted([self._forward[s] for s in stages] * micro_batches, reverse=True)
        backwards = sorted([self._backward[s] for s in stages] * micro_batches, reverse=True)
        costliest_forwards = list(accumulate(forwards, initial=0.0))
        costliest_backwards = list(accumulate(backwards, initial=0.0))
        saving = max(0.0, 1.0 - self._factor[rank])
        least = inf
        for unpaired in range(2 * micro_batches + 1):
            pairs = 2 * micro_batches - unpaired
            saved = saving * (costliest_forwards[pairs] + costliest_backwards[pairs])
            held = min(unpaired, cap)
            in_window = max(0.0, window - costliest_forwards[held])
            in_tail = max(0.0, tail - costliest_backwards[held])
            # Without pairs, the last F may come before the first backward.
            apart = pairs or cap < 2 * micro_batches
            idle = in_window + in_tail if apart else max(in_window, in_tail)
            least = min(least, idle - saved)
        work = costliest_forwards[-1] + costliest_backwards[-1]
        return start + work + least + self._after[rank]
