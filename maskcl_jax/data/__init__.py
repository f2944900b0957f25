"""The host side: from images in files to batches of uint8 views, the same for every run of one config.

Reading order: `pipeline` (what the training loop calls), `sources` (where images come from), `order` (which images make
batch n), `decode` (the pixels). What is drawn at random lies in `maskcl_jax.views`.
"""
