"""All mutants: each is one mistake that a test must see."""

from mutants import data, evaluation, faults, methods, references, training

MUTANTS = [
    *training.RESUME,
    *training.TRAINING,
    *methods.METHODS,
    *methods.MODELS,
    *data.DATA,
    *evaluation.EVALUATION,
    *evaluation.API,
    *evaluation.AROUND,
    *faults.FAULTS,
    *references.CORNERS_AND_REFERENCES,
]
