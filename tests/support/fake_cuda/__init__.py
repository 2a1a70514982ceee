"""A CUDA device that computes nothing: runs meant for a GPU are rehearsed on it (docs/rehearsal.md).

``guard`` makes torch's CPU build believe in it, ``machine`` stands in for torch.cuda, ``watch``
counts what the host waits for and launches, ``cases`` are the paths of a run, ``run`` rehearses
them in a process of its own, because the guard must be there before torch is.
"""
