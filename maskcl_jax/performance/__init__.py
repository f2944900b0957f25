"""What the hardware can do, and what a program asks of it."""
