"""TensorFlow as a reader of images on the host: imported only when needed, kept off the accelerator."""

import functools


@functools.cache
def tensorflow():
    """The tensorflow module. On the first call it is imported and every GPU and TPU is hidden from it."""
    import tensorflow as tf

    # Otherwise TensorFlow would take the memory of the accelerator that JAX is using.
    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    return tf
