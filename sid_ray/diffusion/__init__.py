"""Noise levels, draws by key, augmentation of images."""
