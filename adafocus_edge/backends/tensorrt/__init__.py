"""TensorRT: the library, its engines, and building them."""
