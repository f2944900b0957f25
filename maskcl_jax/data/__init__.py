"""The host side: from photographs to batches of uint8 views and masks, the same for every run of one config.

Reading order: `pipeline` (what the training loop calls), `sources` (where images come from), `order` (which
images make batch n), `crops` and `masks` (what is drawn at random), `arrays` and `decoding` (the pixels).
"""
