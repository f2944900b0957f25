"""A small study for tests."""

from maskcl_jax.study import Entry, Evaluation, Study

TWO = Study(
    question="?",
    budget="none",
    entries=(Entry("first", "mae:synthetic"), Entry("second", "ccmim:synthetic"), Entry("again", of="first")),
    evaluations=(Evaluation("knn"),),
    comparisons=(("second", "first"),),
)
