"""What an encoder is worth without further training, or with little: the protocols that the papers report."""
