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
from trainer.world import RankError, leads

# Their messages say all that their user can use; anything else is a fault of ours, with its trace.
EXPECTED = (ConfigError, CheckpointError, FloatingPointError, MemoryError, RankError)
REFUSALS = (ValueError, CheckpointError, RankError)  # before anything has begun; see fail


class Closing:
    """Around a whole run: prints the last lines and leaves the process's exit code in `code`.

    An error ends here, at the edge of the process: hydra would print its own shortened trace below
    the lines that a reader of the log looks for. Of several processes rank 0 says where the run
    stands, the others their own error alone.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        """`arguments` are those of the command line."""
        self.arguments, self.run, self.code = list(arguments), None, 0

    def begin(self, run: Run) -> None:
        """From here on there is a run to speak of."""
        self.run = run
        if leads():
            run.stop.last_words = lambda: self.lines("ended at once")

    def __enter__(self) -> Closing:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        run = self.run
        if error is None:
            if leads():
                unfinished = run.trainer.step < run.config.train.steps
                stopped = f"stopped by {run.stop.asked or 'another process'}"
                say(self.lines(stopped) if unfinished else self.done(), sys.stdout)
            return False
        if not isinstance(error, Exception):
            return False
        if run is None:
            self.code = fail(error) if isinstance(error, REFUSALS) else 0
            return bool(self.code)
        self.code = 1
        if not isinstance(error, EXPECTED):
            traceback.print_exception(kind, error, trace)
        what = described(error)
        say(self.lines(f"failed, {what}") if run.begun and leads() else what, sys.stderr)
        return True

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
        here = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's word: processes of this node
        start = ["python"] if here == "1" else ["torchrun", f"--nproc-per-node={here}"]
        return shlex.join([*start, "-m", "trainer.run", *kept, *changes])


def say(text: str, file: TextIO) -> None:
    """Print at once: the process ends behind it."""
    print(text, file=file, flush=True)


def fail(error: Exception) -> int:
    """Says what is wrong, without a trace: these errors are the user's to mend. The exit code."""
    say(described(error), sys.stderr)
    return 2


def described(error: Exception) -> str:
    """Its kind and message, and whose it is where there are several processes."""
    rank = "" if leads() else f"rank {os.environ['RANK']}: "
    return f"{rank}{type(error).__name__}: {error}"
