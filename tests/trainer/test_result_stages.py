"""What `make results` runs by default, side by side, and what it shows meanwhile."""

import io
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from trainer.results.__main__ import _parser, _plan
from trainer.results.display import Display, last_line
from trainer.results.plan import ABLATIONS, base_stages, chains


def plan(*arguments):
    return _plan(_parser().parse_args(arguments))


def test_by_default_it_is_all_that_the_document_shows():
    assert (plan().seeds, plan().ablations) == (3, True)
    assert (plan("--quick").seeds, plan("--quick").ablations) == (1, False)
    some = plan("--seeds", "2", "--no-ablations")
    assert (some.seeds, some.ablations) == (2, False)


def test_chains_hold_every_stage_once_and_in_an_order_that_works():
    found = chains(plan(), 60.0)
    stages = [stage for chain in found for stage in chain]
    assert len({stage.folder for stage in stages}) == len(stages)
    assert len(found) == 3 + len(ABLATIONS) + 1 and set(base_stages(plan()).values()) < set(stages)
    for chain in found:
        made = {f"model.path={stage.folder}" for stage in stages if stage.kind == "train"}
        for stage in chain:
            assert not made & set(stage.arguments)  # what it reads was made before
            made.discard(f"model.path={stage.folder}")
    assert len(chains(replace(plan(), ablations=False), 60.0)) == 4


def test_the_last_line_of_a_log_that_says_something(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    assert last_line(log) == ""
    log.write_text("x" * 10_000 + "\nstep 1\nstep 2  acc 50%\n\n")
    assert last_line(log) == "step 2  acc 50%"


def test_without_a_terminal_a_line_a_stage_is_said_now_and_then(tmp_path):
    log = Path(tmp_path / "l1_exact.log")
    log.write_text("step 3/115 [bold]\n")
    said = io.StringIO()
    with Display(Console(file=said)) as display:
        for _ in range(3):
            display.show([log], 4, 9)
    assert said.getvalue() == f"4 of 9 stages done, 0 s\n{tmp_path}/l1_exact: step 3/115 [bold]\n"
