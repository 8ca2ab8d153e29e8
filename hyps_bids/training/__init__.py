"""What every training shares: the loop, augmentation, model cards and distributed processes."""
