"""A CUDA device that computes nothing, on which runs meant for a GPU are rehearsed.

``guard`` makes torch's CPU build believe in it, ``machine`` stands in for torch.cuda, ``watch``
counts what the host waits for and launches, ``cases`` are the paths of a run, ``run`` rehearses
them in a process of its own, because the guard must be there before torch is. docs/rehearsal.md
says what this sees and what it cannot.
"""
