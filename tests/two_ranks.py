"""A process of torch.distributed that reads a build; a module of its own, so that it starts quickly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader

import tokenlabels


def read_as_rank(rank: int, store: str, folder: str, out: Path) -> None:
    """What one of two processes sees through a worker, spawned or forked: an epoch, and a part of it again."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    try:
        dataset = tokenlabels.open(folder).torch_dataset(shuffle=True, batch_size=4)
        start = ("spawn", "fork")[rank]
        loader = DataLoader(
            dataset, batch_size=None, num_workers=1, multiprocessing_context=start, persistent_workers=True
        )
        seen = [batch["image_id"] for batch in loader]
        count = torch.tensor(sum(map(len, seen)))
        torch.distributed.all_reduce(count)
        dataset.load_state_dict(dataset.state_dict(loader, 3))
        rest = [batch["image_id"] for batch in loader]
        found = {"rank": dataset.rank, "seen": seen, "count": count.item(), "rest": rest}
        out.write_text(json.dumps(found))
    finally:
        torch.distributed.destroy_process_group()
