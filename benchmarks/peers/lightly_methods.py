"""MAE, SimCLR and MoCo v2 of lightly at the sizes of the small presets, as its examples write them."""

import torch
import torch.nn.functional as F
from lightly import transforms
from lightly.loss import NTXentLoss
from lightly.models import modules, utils
from small_networks import MEAN, STD, resnet10, small_vit
from torch import nn

NORMALIZE = {"mean": list(MEAN), "std": list(STD)}


class MAE(nn.Module):
    """lightly's example of MAE at the size of the small preset."""

    def __init__(self):
        super().__init__()
        self.backbone = modules.MaskedVisionTransformerTIMM(vit=small_vit())
        self.decoder = modules.MAEDecoderTIMM(
            num_patches=64, patch_size=4, embed_dim=96, decoder_embed_dim=64, decoder_depth=1, decoder_num_heads=4
        )
        self.transform = transforms.MAETransform(input_size=32, normalize=NORMALIZE)

    def loss(self, views):
        """The mean squared error of the masked patches, each normalized."""
        (images,) = views
        keep, mask = utils.random_token_mask(size=(len(images), 65), mask_ratio=0.75)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=keep))
        tokens = utils.repeat_token(self.decoder.mask_token, (len(images), 65))
        tokens = utils.set_at_index(tokens, keep, encoded.type_as(tokens))
        predicted = self.decoder.predict(utils.get_at_index(self.decoder.decode(tokens), mask))
        target = utils.get_at_index(utils.patchify(images, 4), mask - 1)
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return F.mse_loss(predicted, target)

    def features(self, images):
        """The mean of the patch tokens."""
        return self.backbone.encode(images=images)[:, 1:].mean(1)


class SimCLR(nn.Module):
    """lightly's SimCLR."""

    def __init__(self):
        super().__init__()
        self.backbone = resnet10()
        self.head = modules.SimCLRProjectionHead(128, 128, 64)
        self.criterion = NTXentLoss(temperature=0.2)
        self.transform = transforms.SimCLRTransform(
            input_size=32, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0, normalize=NORMALIZE
        )

    def loss(self, views):
        """Both views in one pass."""
        first, second = self.head(self.backbone(torch.cat(views))).chunk(2)
        return self.criterion(first, second)

    def features(self, images):
        """What is pooled."""
        return self.backbone(images)


class MoCoV2(nn.Module):
    """lightly's MoCo v2, a queue of 512 keys; keys are shuffled in the code of the paper, here not."""

    def __init__(self):
        super().__init__()
        self.backbone, self.head = resnet10(), modules.MoCoProjectionHead(128, 128, 64)
        self.key_backbone, self.key_head = resnet10(), modules.MoCoProjectionHead(128, 128, 64)
        self.key_backbone.load_state_dict(self.backbone.state_dict())
        self.key_head.load_state_dict(self.head.state_dict())
        self.criterion = NTXentLoss(temperature=0.1, memory_bank_size=(512, 64))
        self.transform = transforms.MoCoV2Transform(input_size=32, gaussian_blur=0.0, normalize=NORMALIZE)

    def loss(self, views):
        """Queries against keys of the EMA encoder."""
        utils.update_momentum(self.backbone, self.key_backbone, m=0.99)
        utils.update_momentum(self.head, self.key_head, m=0.99)
        query = self.head(self.backbone(views[0]))
        with torch.no_grad():
            key = self.key_head(self.key_backbone(views[1]))
        return self.criterion(query, key)

    def features(self, images):
        """What is pooled."""
        return self.backbone(images)


METHODS = {"mae": MAE, "simclr": SimCLR, "moco_v2": MoCoV2}
