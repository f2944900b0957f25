"""Views of an image and their ingredients, one file an ingredient. Start with `base`; `block_mask` is an example."""
