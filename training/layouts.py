"""File names and formats of each data set, which ``prepare`` writes and ``train`` reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """One data set's files and labels.

    Attributes:
        train_list: split list to train on.
        val_list: split list to evaluate on.
        classes: file of class names, one per line.
        separator: separator of the fields in split lists.
        multi_label: whether mAP counts all labels of a clip, or only its first.
        best_by: metric that selects the best checkpoint: ``mAP`` or ``top1``.
    """

    train_list: str
    val_list: str
    classes: str = "classInd.txt"
    separator: str = ","
    multi_label: bool = False
    best_by: str = "mAP"


LAYOUTS = {
    # ActivityNet v1.3: 200 classes, up to three labels per video; mAP by the first, as in the official code.
    "actnet": Layout("actnet_train_split.txt", "actnet_val_split.txt"),
    # Own videos: <video>,<frames>,<class> per line.
    "custom": Layout("custom_train_split.txt", "custom_val_split.txt", best_by="top1"),
    # FCVID: 239 classes, up to three labels per video; mAP by all of them.
    "fcvid": Layout("fcvid_train_split.txt", "fcvid_val_split.txt", multi_label=True),
    # Mini-Kinetics: 200 classes, one label per video; paths may hold spaces.
    "minik": Layout(
        "mini_train_videofolder.txt", "mini_val_videofolder.txt", "minik_classInd.txt", separator=" ", best_by="top1"
    ),
}
