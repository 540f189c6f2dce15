// Shared by all kernels: MLX puts this text before each kernel's body.
