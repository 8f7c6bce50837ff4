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


@dataclass(frozen=True)
class Stage:
    """One pass over the samples.

    Attributes:
        name: For the progress display.
        work: Adds the sample of an index to ``arrays``; called from several threads. The sum must
            not depend on the order.
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
            while todo:
                self._slice(pool, jobs, todo, done, progress)
                if self.checkpoint is not None and todo:
                    self.checkpoint.save({"done": done, **self.arrays}, progress)

    def _slice(
        self,
        pool: ThreadPoolExecutor,
        jobs: int,
        todo: deque[int],
        done: npt.NDArray[np.bool_],
        progress: Progress,
    ) -> None:
        """Run samples until it is time to save; none is in flight when this returns."""
        deadline = time.monotonic() + (self.checkpoint.seconds if self.checkpoint else np.inf)
        running: dict[Future[None], int] = {}
        try:
            for _ in range(min(jobs, len(todo))):
                self._submit(pool, todo, running)
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    future.result()
                    done[self.ranks[running.pop(future)]] = True
                    progress.step(self.name, int(done.sum()), len(done))
                    if todo and time.monotonic() < deadline:
                        self._submit(pool, todo, running)
        except KeyboardInterrupt:
            self._save_interrupted(running, done, progress)
            raise

    def _submit(
        self, pool: ThreadPoolExecutor, todo: deque[int], running: dict[Future[None], int]
    ) -> None:
        index = todo.popleft()
        running[pool.submit(self.work, index)] = index

    def _save_interrupted(
        self, running: dict[Future[None], int], done: npt.NDArray[np.bool_], progress: Progress
    ) -> None:
        wait(running)
        if self.checkpoint is None or any(future.exception() for future in running):
            return
        for index in running.values():
            done[self.ranks[index]] = True
        self.checkpoint.save({"done": done, **self.arrays}, progress)

    def _resumed(
        self, checkpoint: Checkpoint, done: npt.NDArray[np.bool_], progress: Progress
    ) -> npt.NDArray[np.bool_]:
        saved = checkpoint.load({"done": done, **self.arrays}, progress)
        if saved is None:
            return done
        for name, array in self.arrays.items():
            np.copyto(array, saved[name])
        finished = saved["done"].astype(np.bool_)
        progress.notice(f"{self.name}: continues after {finished.sum()} of {len(done)} samples")
        return finished
