"""What `from_jax` compiles."""
