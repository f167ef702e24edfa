/* model.S: the weight file, in flash. */

    .section .model, "a"
    .balign 64
    .global model_start, model_end
model_start:
    .incbin "model.slm"
model_end:
