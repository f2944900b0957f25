"""Data of noise with the labels that a test needs."""

import numpy as np

from maskcl_jax.data.sources import Arrays, Source

EIGHT, SIX = [0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 2]  # labels of training and of test images


class Degenerate(Source):
    """Noisy 8x8 images to train and to test on, of the labels given; perhaps all the same image."""

    num_classes, description, class_names = 3, "degenerate, of noise", ("a", "b", "c")

    def __init__(self, train, test, constant=False):
        super().__init__()
        self.labels, self.constant = {"train": train, "test": test}, constant

    def num_examples(self, split):
        return len(self.labels[split])

    def load(self, split):
        labels = np.array(self.labels[split], np.int32)
        images = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 1)).astype(np.uint8)
        return Arrays(images * 0 + 7 if self.constant else images, labels)
