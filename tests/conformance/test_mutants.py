"""The list of mutations fits the source, so that it cannot rot unseen."""

from collections import Counter

from mutants import MUTANTS, ROOT, misfits


def test_every_mutation_changes_exactly_one_place():
    assert len(MUTANTS) >= 10
    assert misfits(MUTANTS) == []
    assert all(mutant.old != mutant.new for mutant in MUTANTS)
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1


def test_every_mutation_names_tests_that_exist():
    for mutant in MUTANTS:
        paths = [word for word in mutant.tests.split() if word.startswith("tests/")]
        assert paths
        assert all((ROOT / path).exists() for path in paths), mutant.name
