"""mutations.yaml names what is there, every case has a protection, and the page is of that list.

That the tests fail without their protections is seen by `python -m tests.fault.mutations`.
"""

from __future__ import annotations

import ast

import pytest

from tests.fault.mutations import (
    PAGE,
    ROOT,
    Mutation,
    load_mutations,
    row,
    rows_by_mutation,
    start_of,
)

MUTATIONS = load_mutations()
CASES = {f"T{number}": f"_t{number:02}_" for number in range(1, 29)}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.case}: {m.protection}")
def test_it_names_what_is_there(mutation):
    text = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert text.count(mutation.replace) == 1
    changed = text.replace(mutation.replace, mutation.by)
    ast.parse(changed)
    file, _, test = mutation.test.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert test.partition("[")[0] in names


def test_every_case_has_a_protection_and_a_test_named_after_it():
    for case, name in CASES.items():
        assert any(name in mutation.test for mutation in MUTATIONS if mutation.case == case), case


def test_the_page_is_of_this_list():
    """Written anew after a change of the list; how each test failed is not compared."""
    _, *found = rows_by_mutation(PAGE)
    assert found == [start_of(row(mutation, "")) for mutation in MUTATIONS]


def test_a_row_holds_no_path_and_breaks_no_table():
    mutation = Mutation("T0", "a", "b", "trainer/x.py", "c", "d", "tests/test_x.py::test_y")
    line = row(mutation, "OSError: no /tmp/tmpabc/kernels/x.py\nor 1 | 2 `here`")
    assert line.count(" | ") == 4 and "\n" not in line[:-1] and "tmpabc" not in line
