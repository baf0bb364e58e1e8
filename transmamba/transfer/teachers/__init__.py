"""Teachers: which Transformer a checkpoint holds, and its tensors in one canonical form."""
