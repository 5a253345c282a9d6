"""Sources: readers of annotation formats."""
