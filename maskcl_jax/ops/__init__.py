"""Pure functions on the device: losses, masks, colors, regions."""
