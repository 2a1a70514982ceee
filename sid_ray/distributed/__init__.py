"""The trained roles: plain torch, DeepSpeed ZeRO, and the parts of their state."""
