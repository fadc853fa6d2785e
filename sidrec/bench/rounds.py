"""Rounds over the plans, in an order that rotates, so that a slow minute of the machine falls on all of them alike."""

import gc
import os
import time
import traceback
from collections.abc import Callable
from datetime import timedelta

from torch import distributed as dist

from sidrec.bench.agreement import dissenters
from sidrec.bench.contenders import Contender
from sidrec.bench.record import Record
from sidrec.bench.subject import Subject
from sidrec.bench.trial import Amounts, Trial, Visit
from sidrec.parallel.process_group import Ranks, together

LONGEST = 400
"""Characters kept of an error from the depths of TorchRec."""


class Rounds:
    """Visits every plan once a round.

    records: by name; the same on every rank. A record that has failed is passed over. keep: whether the models stay in
    memory between rounds, or are built anew for every visit. save: called on every rank after each visit.
    """

    def __init__(
        self,
        subject: Subject,
        contenders: list[Contender],
        records: dict[str, Record],
        amounts: Amounts,
        keep: bool,
        save: Callable[[], object],
        ranks: Ranks,
    ) -> None:
        self._subject = subject
        self._plans = {contender.name: contender.plan for contender in contenders}
        self._records = records
        self._amounts = amounts
        self._keep = keep
        self._save = save
        self._ranks = ranks
        self._trials: dict[str, Trial] = {}

    def run(self, rounds: int) -> None:
        """All rounds. After the first, plans whose losses differ from the others' are out."""
        begun, visits = time.monotonic(), 0
        for number in range(rounds):
            alive = self._alive()
            turn = number % max(1, len(alive))
            for place, name in enumerate(alive[turn:] + alive[:turn]):
                self._measure(self._records[name])
                self._save()
                visits += 1
                left = len(alive) * (rounds - number) - place - 1
                self._say(f"round {number + 1}/{rounds}", name, (time.monotonic() - begun) / visits * left)
            if number == 0:
                self._drop_dissenters()

    def _alive(self) -> list[str]:
        return [name for name, record in self._records.items() if record.failed is None]

    def _measure(self, record: Record) -> None:
        """A visit on all ranks. One that fails on any rank ends this plan on all; the others go on."""
        try:
            visit = together(self._ranks, lambda: self._visit(record.name))
        except Exception as error:
            if os.environ.get("SIDREC_TRACEBACK") == "1":
                traceback.print_exc()
            record.failed = f"{type(error).__name__}: {' '.join(str(error).split())[:LONGEST]}"
            self._trials.pop(record.name, None)
            return
        finally:
            gc.collect()
        visits = [visit] * self._ranks.world
        dist.all_gather_object(visits, visit, group=self._ranks.control)
        record.add(visits)

    def _visit(self, name: str) -> Visit:
        trial = self._trials.get(name)
        if trial is None:
            plan = self._plans[name]
            assert plan is not None, "a contender without a plan has failed already"
            trial = Trial(self._subject, plan, self._ranks)
        if self._keep:
            self._trials[name] = trial
        return trial.visit(self._amounts)

    def _drop_dissenters(self) -> None:
        for name, sentence in dissenters({name: self._records[name].losses for name in self._alive()}).items():
            self._records[name].failed = sentence
            self._trials.pop(name, None)
        self._save()

    def _say(self, where: str, name: str, seconds_left: float) -> None:
        if self._ranks.first:
            record = self._records[name]
            found = f"step {record.rounds[-1]:.2f} ms" if record.failed is None else f"failed: {record.failed}"
            print(f"{where}  {name}  {found}  ETA {timedelta(seconds=round(seconds_left))}", flush=True)
