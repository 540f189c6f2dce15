"""Operations with a place for a Metal kernel, each beside its reference in MLX operations."""
