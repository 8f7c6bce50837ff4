"""Runs every sample once on a few threads, so that a killed run continues where it was."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qcompile.calibrate.cache import Checkpoint
from qcompile.progress import Progress
from qcompile.samples import Array

_Done = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Stage:
    """One pass over the samples.

    Attributes:
        name: For the progress display.
        work: Adds the sample of an index to ``arrays``, after all that can fail; called from
            several threads. The sum must not depend on the order.
        arrays: What the work adds to, in place; all that there is to save.
        ranks: Each sample's place in the order of contents, ``(N,)``: what a checkpoint calls it.
        checkpoint: Where the arrays are saved now and then; None saves nothing.
    """

    name: str
    work: Callable[[int], None]
    arrays: Mapping[str, Array]
    ranks: Sequence[int]
    checkpoint: Checkpoint | None

    def run(self, jobs: int, progress: Progress) -> None:
        """Run all samples, at most ``jobs`` at a time.

        An error or Ctrl-C ends the run when the samples in flight are done.
        """
        done = np.zeros(len(self.ranks), np.bool_)
        if self.checkpoint is not None:
            done = self._resumed(self.checkpoint, done, progress)
        todo = deque(index for index, rank in enumerate(self.ranks) if not done[rank])
        progress.step(self.name, len(done) - len(todo), len(done))
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while todo:
                    self._slice(pool, jobs, todo, done, progress)
                    if todo:
                        self._save(done, progress)
            except KeyboardInterrupt:
                pool.shutdown(cancel_futures=True)
                self._save(done, progress)
                raise

    def _slice(
        self, pool: ThreadPoolExecutor, jobs: int, todo: deque[int], done: _Done, progress: Progress
    ) -> None:
        """Run samples until it is time to save; none is in flight when this returns."""
        deadline = time.monotonic() + (self.checkpoint.seconds if self.checkpoint else np.inf)
        running: set[Future[None]] = set()
        for _ in range(min(jobs, len(todo))):
            running.add(pool.submit(self._one, todo.popleft(), done))
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                progress.step(self.name, int(done.sum()), len(done))
                if todo and time.monotonic() < deadline:
                    running.add(pool.submit(self._one, todo.popleft(), done))

    def _one(self, index: int, done: _Done) -> None:
        # here and not in the main thread, where Ctrl-C could come between the work and its mark
        self.work(index)
        done[self.ranks[index]] = True

    def _save(self, done: _Done, progress: Progress) -> None:
        if self.checkpoint is not None:
            self.checkpoint.save({"done": done, **self.arrays}, progress)

    def _resumed(self, checkpoint: Checkpoint, done: _Done, progress: Progress) -> _Done:
        saved = checkpoint.load({"done": done, **self.arrays}, progress)
        if saved is None:
            return done
        for name, array in self.arrays.items():
            np.copyto(array, saved[name])
        finished = saved["done"].astype(np.bool_)
        progress.notice(f"{self.name}: continues after {finished.sum()} of {len(done)} samples")
        return finished
