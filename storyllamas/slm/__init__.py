"""The weight file (`.slm`): its header, tokenizer and tensors, and quantization."""
