"""MAE, SimCLR and MoCo v2 of stable-pretraining at the sizes of the small presets."""

from small_networks import MEAN, STD, resnet10, small_vit
from stable_pretraining import methods
from stable_pretraining.data import transforms

CROP = transforms.RandomResizedCrop(32, scale=(0.2, 1.0))
FLIP = transforms.RandomHorizontalFlip(p=0.5)
TO_IMAGE = transforms.ToImage(mean=list(MEAN), std=list(STD))


def views(count: int, *augmentations):
    """A transform of a PIL image: `count` views in a tuple."""
    transform = transforms.Compose(CROP, FLIP, *augmentations, TO_IMAGE)
    return lambda image: tuple(transform({"image": image})["image"] for _ in range(count))


class MAE(methods.MAE):
    """Its MAE."""

    def __init__(self):
        super().__init__(small_vit(), decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4)
        self.transform = views(1)

    def loss(self, batch):
        """The mean squared error of the masked patches, each normalized."""
        return self(batch[0]).loss

    def features(self, images):
        """The mean of the patch tokens."""
        return self.encoder(images).encoded[:, 1:].mean(1)


class SimCLR(methods.SimCLR):
    """Its SimCLR."""

    def __init__(self):
        super().__init__(resnet10(), projector_dims=(128, 64), temperature=0.2)
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
        self.transform = views(2, jitter, transforms.RandomGrayscale(p=0.2))

    def loss(self, batch):
        """Of both views."""
        return self(*batch).loss

    def features(self, images):
        """What is pooled."""
        return self.backbone(images)


class MoCoV2(methods.MoCov2):
    """Its MoCo v2, a queue of 512 keys; keys are not shuffled."""

    def __init__(self):
        sizes = {"projector_dims": (128, 64), "queue_length": 512, "temperature": 0.1}
        super().__init__(resnet10(), ema_decay_start=0.99, ema_decay_end=0.99, **sizes)
        jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
        self.transform = views(2, jitter, transforms.RandomGrayscale(p=0.2))

    def loss(self, batch):
        """Queries against keys of the EMA encoder."""
        self.backbone.update_teacher()
        self.projector.update_teacher()
        return self(*batch).loss

    def features(self, images):
        """What is pooled, of the trained encoder."""
        return self.backbone.forward_student(images)


METHODS = {"mae": MAE, "simclr": SimCLR, "moco_v2": MoCoV2}
