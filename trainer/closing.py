"""The last lines of a run, whatever ended it: what happened, what is saved, what continues it."""

from __future__ import annotations

import os
import shlex
import sys
import traceback
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

from trainer.checkpoint import CheckpointError
from trainer.config import ConfigError
from trainer.loop import Run
from trainer.world import RankError, rank_prefix

# Their messages say all that their user can use; anything else is a fault of ours, with its trace.
EXPECTED = (ConfigError, CheckpointError, FloatingPointError, RankError)


class Closing:
    """Around `run_loop`: prints the last lines and leaves the process's exit code in `code`.

    Of several ranks the first one does, and any that fails says so.

    An error ends here, at the edge of the process: hydra would print its own shortened trace below
    the lines that a reader of the log looks for.
    """

    def __init__(self, run: Run, arguments: Sequence[str]) -> None:
        """`arguments` are those of the command line."""
        self.run, self.arguments, self.code = run, list(arguments), 0
        run.stop.last_words = lambda: self.lines("ended at once")

    def __enter__(self) -> Closing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        run, leads = self.run, self.run.trainer.world.leads
        if error is None and not leads:
            return False
        if error is None and run.trainer.step < run.config.train.steps:
            say(self.lines(f"stopped by {run.stop.asked or 'another rank'}"), sys.stdout)
        elif error is None:
            say(self.done(), sys.stdout)
        elif isinstance(error, Exception):
            self.code = 1
            if not isinstance(error, EXPECTED):
                traceback.print_exception(kind, error, trace)
            what = f"{rank_prefix()}{type(error).__name__}: {error}"
            say(self.lines(f"failed, {what}") if run.begun and leads else what, sys.stderr)
        return isinstance(error, Exception)

    def lines(self, outcome: str) -> str:
        """Three lines for an end that is not the last step."""
        step, steps = self.run.trainer.step, self.run.config.train.steps
        return (
            f"{outcome}\n"
            f"behind step {step} of {steps}; saved: {self.saved()}\n"
            f"continue: {self.command()}"
        )

    def done(self) -> str:
        """The same for a complete run, and where to look."""
        run, steps = self.run, self.run.config.train.steps
        return (
            f"saved: {self.saved()}\n"
            f"continue: {self.command(f'train.steps={2 * steps}')}\n"
            f"done: {run.folder}/evaluation.png; samples: python -m trainer.samples {run.folder}"
        )

    def saved(self) -> str:
        """The newest checkpoint, and how many steps were made behind it."""
        run = self.run
        if run.saved is None:
            return "nothing yet"
        lost = run.trainer.step - run.saved_step
        return f"{run.saved}" + (f", {lost} step(s) before that" if lost else "")

    def command(self, *changes: str) -> str:
        """The command line that goes on in the run folder.

        Once the folder has a checkpoint of its own it is that one, not what `resume` named.
        """
        own = self.run.saved is not None and self.run.saved.parent == self.run.checkpoints
        kept = [a for a in self.arguments if not (own and a.startswith(("resume=", "resume.")))]
        size = self.run.trainer.world.size
        here = os.environ.get("LOCAL_WORLD_SIZE", str(size))  # torchrun's, of this node
        start = ["torchrun", f"--nproc-per-node={here}"] if size > 1 else ["python"]
        return shlex.join([*start, "-m", "trainer.run", *kept, *changes])


def say(text: str, file: TextIO) -> None:
    """Print at once: the process ends behind it."""
    print(text, file=file, flush=True)
