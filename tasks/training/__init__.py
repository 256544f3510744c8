"""Fine-tuning on CPU and GPU: model, data, step, optimiser, checkpoints, several processes."""
