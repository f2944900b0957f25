"""What chips can do, and what a program needs of them."""
