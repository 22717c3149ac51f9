"""SlotMatch: a small video segmentation model that learns slots from a large one."""
