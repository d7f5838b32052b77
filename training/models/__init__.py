"""AdaFocus families: one module per generation of the model."""
