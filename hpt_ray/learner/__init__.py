"""MicroBatches to new weights: DeepSpeed ranks in actors of their own."""
