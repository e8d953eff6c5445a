"""Warnings of the real engines that are not ours to mend, for `filterwarnings`."""

FOREIGN = (
    "ignore:DTensor random operators may not have complete support:UserWarning",
    "ignore:In CPU autocast, but the target dtype is not supported:UserWarning",
    "ignore:To get the last learning rate computed by the scheduler:UserWarning",
    "ignore::DeprecationWarning",
    "ignore::FutureWarning",
    "ignore::ResourceWarning",
)
