"""What a backward pass finds of the forward pass, and what it makes again."""

import jax


def of_weights(primitive, *arguments, **parameters) -> bool:
    """Whether an operation is a product with a layer's weights: most of the work, and a small part of the memory."""
    if primitive.name == "conv_general_dilated":
        return True
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *arguments, **parameters)


# By the name that `config.remat` has: what of a block is kept besides its input.
POLICIES = {"blocks": None, "cheap": of_weights}
